"""The verbs.  An ``Axis`` is one axis of the mesh as this rank sees it: its communicator, its
place on it, and a ledger in which every call says *what* it moves.

Sums are made in rank order (sums.py): a reduce-scatter is an all-to-all followed by additions from
rank 0 upwards, an all-reduce is that followed by an all-gather.  They give the same bits for every
split of the same vector, and on every rank.  ``TPARALLEL_ALL_REDUCE=ring`` adds around a ring
instead (ring.py).  At size 1 a verb copies: its result never aliases its input, at any size.

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

from collections.abc import Callable
from time import monotonic

from ..backend import xp
from .board import Board
from .checked import Checker, wanted
from .cut import spans
from .ledger import Ledger
from .link import Link, Stamps
from .pending import Pending, over
from .ring import Ring, ring_wanted
from .sums import Pair, Sums
from .transport import check, make_transport


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
        self._sums = (Pair if comm.size == 2 else Sums)(self._move, comm.rank, comm.size)
        self._like: dict = {"ledger": ledger, "crowded": crowded, "link": link, "board": board}
        self._parts: list[Axis] = []
        self._checker = Checker(comm, name, board) if wanted() and comm.size > 1 else None
        self._stamps = Stamps(comm, link) if link and comm.size > 1 else None
        self._ring = Ring(comm, crowded) if ring_wanted() and comm.size > 1 else None
        self._all_reduce = (self._ring or self._sums).all_reduce

    def all_reduce(self, x, *, what: str, op: str = "sum", out=None):
        """Every rank gets the sum (or maximum) of everybody's ``x``; ``out`` may be ``x``."""
        return self.start_all_reduce(x, what=what, op=op, out=out).wait()

    def start_all_reduce(self, x, *, what: str, op: str = "sum", out=None) -> Pending:
        new = out is None
        out = _room(out, x.shape, x)
        if self.size == 1:
            out[...] = x
            return over(out)
        begun = self._begin("all_reduce", x, what, op)
        finish, wire, rounds = self._all_reduce(x, op, out, new)
        return self._posted(begun, "all_reduce", what, x.nbytes, wire, finish, rounds)

    def reduce_scatter(self, x, *, what: str):
        """The sum of everybody's ``x`` (n k, ...), cut along dim 0; rank r keeps part r."""
        return self.start_reduce_scatter(x, what=what).wait()

    def start_reduce_scatter(self, x, *, what: str) -> Pending:
        if self.size == 1:
            return over(x.copy())
        self._divides(x)
        begun = self._begin("reduce_scatter", x, what)
        parts = spans(len(x), self.size)
        out = xp.empty_like(x[parts[self.rank]])
        finish = self._sums.scatter(x, parts, "sum", out, True)
        return self._posted(begun, "reduce_scatter", what, x.nbytes, x.nbytes - out.nbytes, finish)

    def reduce(self, x, *, root: int, what: str):
        """Rank ``root`` gets the sum of everybody's ``x``, the others None."""
        if self.size == 1:
            return x.copy()
        here = self.rank == root
        out = _room(None, x.shape if here else (0,), x)
        begun = self._begin("reduce", x, what, f"root {root}")
        parts = tuple(slice(0, x.size if r == root else 0) for r in range(self.size))
        finish = self._sums.scatter(x.reshape(-1), parts, "sum", out.reshape(-1), True)
        wire = 0 if here else x.nbytes
        self._posted(begun, "reduce", what, x.nbytes, wire, finish).wait()
        return out if here else None

    def all_gather(self, x, *, what: str, out=None):
        """Everybody's ``x`` (k, ...), one after the other: (n k, ...)."""
        return self.start_all_gather(x, what=what, out=out).wait()

    def start_all_gather(self, x, *, what: str, out=None) -> Pending:
        out = _room(out, (self.size * x.shape[0], *x.shape[1:]), x)
        if self.size == 1:
            out[...] = x
            return over(out)
        begun = self._begin("all_gather", x, what)
        parts = spans(len(out), self.size)
        moving = self._sums.gather(x, out, parts)

        def finish():
            moving.wait()
            out[parts[self.rank]] = x  # now that nobody waits for this rank
            return out

        wire = (self.size - 1) * x.nbytes
        return self._posted(begun, "all_gather", what, out.nbytes, wire, finish)

    def all_to_all(self, x, *, what: str):
        """Row r of ``x`` (n, ...) goes to rank r; the result's row r came from rank r."""
        return self.start_all_to_all(x, what=what).wait()

    def start_all_to_all(self, x, *, what: str) -> Pending:
        if self.size == 1:
            return over(x.copy())
        self._divides(x)
        out = xp.empty(x.shape, x.dtype)
        begun = self._begin("all_to_all", x, what)
        parts = spans(len(x), self.size)
        moving = self._move.exchange(x, parts, out, parts)
        mine = parts[self.rank]
        out[mine] = x[mine]

        def finish():
            moving.wait()
            return out

        wire = x.nbytes - x.nbytes // self.size
        return self._posted(begun, "all_to_all", what, x.nbytes, wire, finish)

    def broadcast(self, x, *, root: int, what: str):
        """Rank ``root``'s ``x``, written into everybody's ``x``."""
        if self.size > 1:
            begun = self._begin("broadcast", x, what, f"root {root}")
            moving = self._move.broadcast(x, root)
            wire = (self.size - 1) * x.nbytes if self.rank == root else 0
            self._posted(begun, "broadcast", what, x.nbytes, wire, moving.wait).wait()
        return x

    def send(self, x, *, to: int, tag: int, what: str) -> Pending:
        """Post a message and go on; ``x`` must not change until the pending send is awaited."""
        begun, moving = monotonic(), self._move.send(x, to, tag)
        finish = moving.wait
        if self._checker:
            finish = self._checker.sending(moving, x, to, tag, what)
        if self._stamps:
            finish = _both(finish, self._stamps.send(x.nbytes, to, tag))
        total = self.ledger.record(self.name, "send", what, x.nbytes, x.nbytes)
        return Pending(self.ledger, total, begun, finish, moving.test)

    def recv(self, x, *, source: int, tag: int, what: str):
        """Fill ``x`` with the message of that tag from rank ``source``."""
        begun, check = monotonic(), None
        if self._checker:
            check = self._checker.receiving(x, source, tag, what)
        moving = self._move.receive(x, source, tag)

        def finish():
            if check:
                check()
            moving.wait()
            if self._stamps:
                self._stamps.receive(source, tag)
            return x

        total = self.ledger.record(self.name, "recv", what, x.nbytes, 0)
        return Pending(self.ledger, total, begun, finish, None).wait()

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

    def _divides(self, x) -> None:
        if len(x) % self.size:
            raise ValueError(
                f"dim 0 is cut into equal parts: {x.shape} cannot be, over {self.size} ranks. "
                "Fill it up to a multiple."
            )

    def _begin(self, op: str, x, *about: str) -> float:
        if self._checker:
            self._checker.meet(f"{op} {x.dtype.name}{list(x.shape)} {' '.join(about)}")
        return monotonic()

    def _posted(self, begun, op, what, payload, wire, finish, rounds=1) -> Pending:
        if self._stamps:
            finish = _both(finish, self._stamps.collective(wire, rounds))
        total = self.ledger.record(self.name, op, what, payload, wire)
        return Pending(self.ledger, total, begun, finish, None)


def _both(finish: Callable, then: Callable) -> Callable:
    """A call that makes both, and returns what the first one does."""

    def finish_both():
        result = finish()
        then()
        return result

    return finish_both


def _room(out, shape: tuple, x):
    """The array for a result: ``out`` if the caller has one that fits, else a new one like x."""
    if out is None:
        return xp.empty_like(x, order="C", shape=shape)  # of x's class too: verify/exact.py
    if out.shape != shape or out.dtype != x.dtype:
        raise ValueError(
            f"out must be like the result: it is {out.dtype} {out.shape}, the result {x.dtype} "
            f"{shape}. Leave out= away for a new array."
        )
    check(out)
    return out
