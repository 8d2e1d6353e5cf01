"""The verbs.  An ``Axis`` is one axis of the mesh as this rank sees it: its communicator, its
place on it, and a ledger in which every call says *what* it moves.

Sums are made in rank order: a reduce-scatter is an all-to-all followed by additions from rank 0
upwards, an all-reduce is that followed by an all-gather.  MPI's own reductions may add in another
order at another size; these give the same bits for every split of the same vector, and on every
rank.  At size 1 a verb copies: its result never aliases its input, at any size.

Bytes that rank r of n sends, for a vector of ``total`` bytes cut into ``piece``s as equal as can
be (``pieces``):

    reduce_scatter   total − piece_r
    all_gather       (n − 1) piece_r
    all_reduce       the sum of both: 2 (n−1)/n total where n divides the vector
    broadcast        (n − 1) total on the root, nothing elsewhere
    send             total

Source: Thakur, Rabenseifner, Gropp 2005, sections 4.3 and 4.5 (what each must move at least).
"""

import os
import time

from ..backend import xp
from .checked import Checker
from .ledger import Ledger
from .transport import make_transport

COMBINE = {"sum": xp.add, "max": xp.maximum}


def pieces(size: int, n: int) -> list[int]:
    """Sizes of n consecutive pieces, as equal as can be, the longer ones first."""
    return [size // n + (r < size % n) for r in range(n)]


class Axis:
    """One axis of the mesh: ``name``, ``rank``, ``size`` and the verbs."""

    def __init__(self, name: str, comm, ledger: Ledger, crowded: bool = False):
        self.name, self.rank, self.size, self.ledger = name, comm.rank, comm.size, ledger
        self._comm, self._move = comm, make_transport(comm, crowded)
        check = os.environ.get("TPARALLEL_CHECK") == "1" and comm.size > 1
        self._checker = Checker(comm, name) if check else None
        self._scratch: dict = {}

    def all_reduce(self, x, *, what: str, op: str = "sum", out=None):
        """Every rank gets the sum (or maximum) of everybody's ``x``."""
        out = xp.empty(x.shape, x.dtype) if out is None else out
        if self.size == 1:
            out[...] = x
            return out
        begun = self._begin("all_reduce", x, f"{what} {op}")
        counts = pieces(x.size, self.size)
        mine = self._scatter_sum(x.reshape(-1), counts, op)
        self._move.all_gather(mine, out.reshape(-1), counts)
        sent = x.size - counts[self.rank] + (self.size - 1) * counts[self.rank]
        self._end(begun, "all_reduce", what, x.nbytes, sent * x.dtype.itemsize)
        return out

    def reduce_scatter(self, x, *, what: str):
        """The sum of everybody's ``x`` (n k, ...), cut along dim 0; rank r keeps part r."""
        if self.size == 1:
            return x.copy()
        rows = self._rows(x)
        begun = self._begin("reduce_scatter", x, what)
        counts = [x.size // self.size] * self.size
        mine = self._scatter_sum(x.reshape(-1), counts, "sum").copy()
        sent = (x.size - counts[self.rank]) * x.dtype.itemsize
        self._end(begun, "reduce_scatter", what, x.nbytes, sent)
        return mine.reshape((rows, *x.shape[1:]))

    def all_gather(self, x, *, what: str, out=None):
        """Everybody's ``x`` (k, ...), one after the other: (n k, ...)."""
        shape = (self.size * x.shape[0], *x.shape[1:])
        out = xp.empty(shape, x.dtype) if out is None else out
        if self.size == 1:
            out[...] = x
            return out
        begun = self._begin("all_gather", x, what)
        self._move.all_gather(x, out, [x.size] * self.size)
        self._end(begun, "all_gather", what, out.nbytes, (self.size - 1) * x.nbytes)
        return out

    def broadcast(self, x, *, root: int, what: str):
        """Rank ``root``'s ``x``, written into everybody's ``x``."""
        if self.size > 1:
            begun = self._begin("broadcast", x, f"{what} root {root}")
            self._move.broadcast(x, root)
            sent = (self.size - 1) * x.nbytes if self.rank == root else 0
            self._end(begun, "broadcast", what, x.nbytes, sent)
        return x

    def send(self, x, *, to: int, tag: int, what: str):
        """Post a message and go on; ``x`` must not change until ``wait`` took what this returns."""
        start = time.perf_counter()
        request = self._move.start_send(x, to, tag)
        self.ledger.record(self.name, "send", what, x.nbytes, x.nbytes, time.perf_counter() - start)
        return request, x

    def wait(self, posted, *, what: str) -> None:
        """The message of a ``send`` is gone: its array may be dropped or written again."""
        start = time.perf_counter()
        self._move.wait(posted[0])
        self.ledger.record(self.name, "wait", what, 0, 0, time.perf_counter() - start)

    def recv(self, x, *, source: int, tag: int, what: str):
        """Fill ``x`` with the message of that tag from rank ``source``."""
        start = time.perf_counter()
        self._move.receive(x, source, tag)
        self.ledger.record(self.name, "recv", what, x.nbytes, 0, time.perf_counter() - start)
        return x

    def close(self) -> None:
        """Give the communicator back: MPI has a limited number of them."""
        self._comm.Free()
        if self._checker:
            self._checker.comm.Free()

    def _scatter_sum(self, flat, counts, op: str):
        """My piece of the sum over ranks 0, 1, 2, ... in that order."""
        mine, n = counts[self.rank], self.size
        received = self._buffer(n * mine, flat.dtype)
        self._move.all_to_all(flat, counts, received, [mine] * n)
        parts = received.reshape(n, mine)
        for r in range(1, n):
            COMBINE[op](parts[0], parts[r], out=parts[0])
        return parts[0]

    def _buffer(self, size: int, dtype):
        """Room for received pieces, kept from call to call."""
        kept = self._scratch.get(dtype)
        if kept is None or kept.size < size:
            kept = self._scratch[dtype] = xp.empty(size, dtype)
        return kept[:size]

    def _rows(self, x) -> int:
        if x.shape[0] % self.size:
            raise ValueError(
                f"reduce_scatter cuts dim 0 into equal parts: {x.shape} over {self.size} ranks"
            )
        return x.shape[0] // self.size

    def _begin(self, op: str, x, what: str) -> float:
        if self._checker:
            self._checker.meet(f"{op} {x.dtype.name}{list(x.shape)} {what}")
        return time.perf_counter()

    def _end(self, begun: float, op: str, what: str, payload: int, wire: int) -> None:
        self.ledger.record(self.name, op, what, payload, wire, time.perf_counter() - begun)
