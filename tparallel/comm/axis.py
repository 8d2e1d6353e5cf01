"""The verbs.  An ``Axis`` is one axis of the mesh as this rank sees it: its communicator, its
place on it, and a ledger in which every call says *what* it moves.

Sums are made in rank order: a reduce-scatter is an all-to-all followed by additions from rank 0
upwards, an all-reduce is that followed by an all-gather.  MPI's own reductions may add in another
order at another size; these give the same bits for every split of the same vector, and on every
rank.  float16 and bfloat16 are summed in float32: no MPI sums bfloat16, and one of them would add
its bytes without a word.  ``TPARALLEL_ALL_REDUCE=ring`` adds around a ring instead (ring.py).  At
size 1 a verb copies: its result never aliases its input, at any size.

Bytes that rank r of n sends, for a vector of ``total`` bytes cut into ``piece``s as equal as can
be (``pieces``):

    reduce_scatter   total − piece_r
    all_to_all       total − piece_r
    all_gather       (n − 1) piece_r
    all_reduce       the sum of both: 2 (n−1)/n total where n divides the vector
    reduce           total, nothing on the root
    broadcast        (n − 1) total on the root, nothing elsewhere
    send             total

Each verb ``v`` is ``start_v(...).wait()``: start it early and wait late, and the work between
hides the transfer.  What is started must not be changed before it is awaited.

Source: Thakur, Rabenseifner, Gropp 2005, sections 4.3 and 4.5 (what each must move at least).
"""

import os
import time

from ..backend import xp
from ..errors import ConfigError
from .board import Board
from .checked import Checker, wanted
from .ledger import Ledger
from .link import Link, Stamps
from .pending import Pending
from .ring import Ring
from .transport import cut, make_transport

COMBINE = {"sum": xp.add, "max": xp.maximum}


def pieces(size: int, n: int) -> list[int]:
    """Sizes of n consecutive pieces, as equal as can be, the longer ones first."""
    return [size // n + (r < size % n) for r in range(n)]


class Axis:
    """One axis of the mesh: ``name``, ``rank``, ``size`` and the verbs."""

    def __init__(
        self,
        name: str,
        comm,
        ledger: Ledger,
        crowded: bool = False,
        link: Link | None = None,
        board: Board | None = None,
    ):
        self.name, self.rank, self.size, self.ledger = name, comm.rank, comm.size, ledger
        self._comm, self._move = comm, make_transport(comm, crowded)
        self._like: dict = {"ledger": ledger, "crowded": crowded, "link": link, "board": board}
        self._parts: list[Axis] = []
        self._checker = Checker(comm, name, board) if wanted() and comm.size > 1 else None
        self._stamps = Stamps(comm, link) if link and comm.size > 1 else None
        self._ring = Ring(comm, crowded) if ring_wanted() and comm.size > 1 else None
        self._spare: list = []  # buffers for received pieces, used again from call to call

    def all_reduce(self, x, *, what: str, op: str = "sum", out=None):
        """Every rank gets the sum (or maximum) of everybody's ``x``; ``out`` may be ``x``."""
        return self.start_all_reduce(x, what=what, op=op, out=out).wait()

    def start_all_reduce(self, x, *, what: str, op: str = "sum", out=None) -> Pending:
        out = _room(out, x.shape, x)
        if self.size == 1:
            out[...] = x
            return self._nothing(out)
        counts = pieces(x.size, self.size)
        mine = counts[self.rank]
        wire = (x.size - mine + (self.size - 1) * mine) * x.dtype.itemsize
        begun = self._begin("all_reduce", x, f"{what} {op}")
        if self._ring:
            return self._around(self._ring, begun, x, counts, op, what, out)
        finish_sum = self._scatter_sum(x, counts, op)

        def finish():
            finish_sum(cut(out, counts)[self.rank])
            self._move.all_gather(None, out, counts).wait()
            return out

        return self._posted(begun, "all_reduce", what, x.nbytes, wire, finish, rounds=2)

    def _around(self, ring: Ring, begun, x, counts, op: str, what: str, out) -> Pending:
        """The same by the ring, which moves when it is awaited."""

        def finish():
            ring.all_reduce(x, counts, COMBINE[op], out)
            return out

        wire = ring.wire(counts) * x.dtype.itemsize
        return self._posted(begun, "all_reduce", what, x.nbytes, wire, finish, 2 * self.size - 2)

    def reduce_scatter(self, x, *, what: str):
        """The sum of everybody's ``x`` (n k, ...), cut along dim 0; rank r keeps part r."""
        return self.start_reduce_scatter(x, what=what).wait()

    def start_reduce_scatter(self, x, *, what: str) -> Pending:
        if self.size == 1:
            return self._nothing(x.copy())
        shape = (self._rows(x), *x.shape[1:])
        wire = (x.size - x.size // self.size) * x.dtype.itemsize
        begun = self._begin("reduce_scatter", x, what)
        finish_sum = self._scatter_sum(x, [x.size // self.size] * self.size, "sum")

        def finish():
            out = _room(None, shape, x)
            finish_sum(out.reshape(-1))
            return out

        return self._posted(begun, "reduce_scatter", what, x.nbytes, wire, finish)

    def reduce(self, x, *, root: int, what: str):
        """Rank ``root`` gets the sum of everybody's ``x``, the others None."""
        if self.size == 1:
            return x.copy()
        here = [x.size if r == root else 0 for r in range(self.size)]
        begun = self._begin("reduce", x, f"{what} root {root}")
        finish_sum = self._scatter_sum(x, here, "sum")

        def finish():
            out = _room(None, x.shape if self.rank == root else (0,), x)
            finish_sum(out.reshape(-1))
            return out if self.rank == root else None

        wire = (x.size - here[self.rank]) * x.dtype.itemsize
        return self._posted(begun, "reduce", what, x.nbytes, wire, finish).wait()

    def all_gather(self, x, *, what: str, out=None):
        """Everybody's ``x`` (k, ...), one after the other: (n k, ...)."""
        return self.start_all_gather(x, what=what, out=out).wait()

    def start_all_gather(self, x, *, what: str, out=None) -> Pending:
        out = _room(out, (self.size * x.shape[0], *x.shape[1:]), x)
        if self.size == 1:
            out[...] = x
            return self._nothing(out)
        begun = self._begin("all_gather", x, what)
        moving = self._move.all_gather(x, out, [x.size] * self.size)

        def finish():
            moving.wait()
            return out

        wire = (self.size - 1) * x.nbytes
        return self._posted(begun, "all_gather", what, out.nbytes, wire, finish)

    def all_to_all(self, x, *, what: str):
        """Row r of ``x`` (n, ...) goes to rank r; the result's row r came from rank r."""
        return self.start_all_to_all(x, what=what).wait()

    def start_all_to_all(self, x, *, what: str) -> Pending:
        if self.size == 1:
            return self._nothing(x.copy())
        self._rows(x)
        out = xp.empty(x.shape, x.dtype)
        begun = self._begin("all_to_all", x, what)
        counts = [x.size // self.size] * self.size
        moving = self._move.all_to_all(x, counts, out, counts)

        def finish():
            moving.wait()
            cut(out, counts)[self.rank][...] = cut(x, counts)[self.rank]
            return out

        wire = x.nbytes - x.nbytes // self.size
        return self._posted(begun, "all_to_all", what, x.nbytes, wire, finish)

    def broadcast(self, x, *, root: int, what: str):
        """Rank ``root``'s ``x``, written into everybody's ``x``."""
        if self.size > 1:
            begun = self._begin("broadcast", x, f"{what} root {root}")
            moving = self._move.broadcast(x, root)
            wire = (self.size - 1) * x.nbytes if self.rank == root else 0
            self._posted(begun, "broadcast", what, x.nbytes, wire, moving.wait).wait()
        return x

    def send(self, x, *, to: int, tag: int, what: str) -> Pending:
        """Post a message and go on; ``x`` must not change until the pending send is awaited."""
        begun = time.monotonic()
        moving = self._move.send(x, to, tag)
        wait = self._checker.sending(moving, x, to, tag, what) if self._checker else moving.wait
        stamped = self._stamps.send(x.nbytes, to, tag) if self._stamps else _nothing_more

        def finish():
            wait()
            stamped()

        self._record(begun, "send", what, x.nbytes, x.nbytes)
        return Pending(self.ledger, self.name, "send", what, finish, moving.test)

    def recv(self, x, *, source: int, tag: int, what: str):
        """Fill ``x`` with the message of that tag from rank ``source``."""
        check = self._checker.receiving(x, source, tag, what) if self._checker else _nothing_more
        moving = self._move.receive(x, source, tag)

        def finish():
            check()
            moving.wait()
            if self._stamps:
                self._stamps.receive(source, tag)
            return x

        self._record(time.monotonic(), "recv", what, x.nbytes, 0)
        return Pending(self.ledger, self.name, "recv", what, finish).wait()

    def split(self, color: int) -> "Axis":
        """The part of this axis whose ranks give the same ``color``."""
        self._parts.append(Axis(self.name, self._comm.Split(color, self.rank), **self._like))
        return self._parts[-1]

    def close(self) -> None:
        """Give the communicators back: MPI has a limited number of them."""
        for part in self._parts:
            part.close()
        if self._checker:
            self._checker.close()
        if self._ring:
            self._ring.close()
        self._move.close()
        if self._stamps:
            self._stamps.comm.Free()
        self._comm.Free()

    def _scatter_sum(self, x, counts, op: str):
        """Post the all-to-all; what it returns writes my piece of the sum over ranks 0, 1, 2, ...,
        added in that order."""
        mine, n = counts[self.rank], self.size
        received = self._buffer(n * mine, x.dtype)
        moving = self._move.all_to_all(x, counts, received, [mine] * n)

        def finish(into) -> None:
            moving.wait()
            parts, own = [*received.reshape(n, mine)], cut(x, counts)[self.rank]
            if self.rank > 1:  # ``into`` may be this part of x, and is written before it is read
                parts[self.rank][...] = own
            else:
                parts[self.rank] = own
            first, *others = parts
            half = into.dtype.itemsize == 2  # summed in float32 and rounded once
            total = first.astype(xp.float32) if half else first
            for other in others:
                total = COMBINE[op](total, other, out=total if half else into)
            if half:
                into[...] = total
            self._spare.append(received.base)

        return finish

    def _buffer(self, size: int, dtype):
        """Room for received pieces: the smallest spare one that is large enough, or a new one."""
        fits = [i for i, b in enumerate(self._spare) if b.dtype == dtype and b.size >= size]
        if fits:
            return self._spare.pop(min(fits, key=lambda i: self._spare[i].size))[:size]
        return xp.empty(max(size, 1), dtype)[:size]

    def _rows(self, x) -> int:
        if x.shape[0] % self.size:
            raise ValueError(
                f"dim 0 is cut into equal parts: {x.shape} cannot be, over {self.size} ranks. "
                "Fill it up to a multiple."
            )
        return x.shape[0] // self.size

    def _begin(self, op: str, x, what: str) -> float:
        if self._checker:
            self._checker.meet(f"{op} {x.dtype.name}{list(x.shape)} {what}")
        return time.monotonic()

    def _posted(self, begun, op, what, payload, wire, finish, rounds=1) -> Pending:
        self._record(begun, op, what, payload, wire)
        if self._stamps:
            arrive, moved = self._stamps.collective(wire, rounds), finish

            def finish():
                out = moved()
                arrive()
                return out

        return Pending(self.ledger, self.name, op, what, finish)

    def _record(self, begun, op, what, payload, wire) -> None:
        self.ledger.record(self.name, op, what, payload, wire, time.monotonic() - begun)

    def _nothing(self, out) -> Pending:
        done = Pending(self.ledger, self.name, "", "", _nothing_more)
        done.result, done.done = out, True
        return done


def ring_wanted() -> bool:
    """``TPARALLEL_ALL_REDUCE``, read when communicators are made: ``ordered`` (the default), sums
    in rank order, or ``ring`` (ring.py)."""
    wanted = os.environ.get("TPARALLEL_ALL_REDUCE", "ordered")
    if wanted not in ("ordered", "ring"):
        raise ConfigError(f"TPARALLEL_ALL_REDUCE must be ordered or ring: it is {wanted!r}.")
    return wanted == "ring"


def _nothing_more() -> None:
    pass


def _room(out, shape, x):
    """The array for a result: ``out`` if the caller has one that fits, else a new one like x."""
    if out is None:
        return xp.empty_like(x, order="C", shape=shape)
    if out.shape != shape or out.dtype != x.dtype:
        raise ValueError(
            f"out must be like the result: it is {out.dtype} {out.shape}, the result {x.dtype} "
            f"{shape}. Leave out= away for a new array."
        )
    return out
