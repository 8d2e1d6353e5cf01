"""An all-reduce around a ring, of messages between neighbours only.

Each rank adds its piece to what its left neighbour sends and passes the sum to the right; after
n − 1 rounds every piece is complete on one rank, and n − 1 more rounds bring it around.  Each rank
sends 2 (n−1)/n of the vector, as the sum in rank order does (``axis.py``), in 2 (n−1) small
messages in place of two calls of MPI.  It needs nothing of MPI but ``Isend`` and ``Irecv``, which
is what many CUDA-aware libraries do well.

A piece is added up in the order of the ring, starting at another rank for each: the same bits on
every rank, but not those of another cut of the same vector.  Half precision is added in float32
and rounded at every hop.

Bytes that rank r sends of ``counts`` pieces: all but piece r + 1, then all but piece r + 2.

Source: Patarasuk, Yuan 2009, section 3
"""

import os
from collections.abc import Callable

from ..backend import xp
from ..errors import ConfigError
from .cut import pieces
from .sums import COMBINE
from .transport import make_transport


class Ring:
    """The ranks of ``comm`` in a circle, on a communicator of its own."""

    def __init__(self, comm, crowded: bool):
        self.comm = comm.Dup()
        self.rank, self.size = comm.rank, comm.size
        self._move = make_transport(self.comm, crowded)

    def all_reduce(self, x, op: str, out, new: bool) -> tuple[Callable, int, int]:
        """As ``Sums.all_reduce``; everything moves when it is awaited."""
        counts, r, n = pieces(x.size, self.size), self.rank, self.size
        sent = 2 * x.size - counts[(r + 1) % n] - counts[(r + 2) % n]

        def finish():
            self._around(x, counts, COMBINE[op], out)
            return out

        return finish, sent * x.dtype.itemsize, 2 * n - 2

    def _around(self, x, counts: list[int], combine: Callable, out) -> None:
        out[...] = x
        flat, r, n = out.reshape(-1), self.rank, self.size

        def piece(k: int):
            start = sum(counts[: k % n])
            return flat[start : start + counts[k % n]]

        room = xp.empty(max(counts), flat.dtype)
        for k in range(n - 1):
            mine = piece(r - k - 1)
            arrived = room[: mine.size]
            self._pass_on(piece(r - k), arrived, tag=k)
            if mine.dtype.itemsize == 2:
                wide = mine.astype(xp.float32)
                mine[...] = combine(wide, arrived.astype(xp.float32), out=wide)
            else:
                combine(mine, arrived, out=mine)
        for k in range(n - 1):
            self._pass_on(piece(r + 1 - k), piece(r - k), tag=n + k)

    def _pass_on(self, sent, arrived, tag: int) -> None:
        """To the right neighbour, from the left one."""
        coming = self._move.receive(arrived, (self.rank - 1) % self.size, tag)
        going = self._move.send(sent, (self.rank + 1) % self.size, tag)
        coming.wait()
        going.wait()

    def close(self) -> None:
        self.comm.Free()


def ring_wanted() -> bool:
    """``TPARALLEL_ALL_REDUCE``, read when communicators are made: ``ordered``, the
    default, or ``ring``."""
    wanted = os.environ.get("TPARALLEL_ALL_REDUCE", "ordered")
    if wanted not in ("ordered", "ring"):
        raise ConfigError(f"TPARALLEL_ALL_REDUCE must be ordered or ring: it is {wanted!r}.")
    return wanted == "ring"
