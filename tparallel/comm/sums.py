"""Sums in rank order: ((x₀ + x₁) + x₂) + ..., for every element, however a vector is cut.

Every rank is sent its piece of everybody's vector and adds up; for an all-reduce the pieces of the
sum then go to everybody.  MPI's own reductions may add in another order at another size; these
give the same bits for every split of the same vector, and on every rank.  float16 and bfloat16 are
summed in float32 and rounded once: no MPI sums bfloat16, and one of them would add its bytes
without a word.

Two ranks that sum a short vector send all of it to each other and both add all of it: the same
bytes in one round instead of two.  For a long one, the half of the additions is worth a round.
"""

from collections.abc import Callable, Sequence

from ..backend import xp
from .cut import spans
from .transport import check

COMBINE = {"sum": xp.add, "max": xp.maximum}
SHORT = 256 << 10  # bytes up to which one round is the faster way between two ranks of a node


class Sums:
    """The sums of one communicator's ranks, by way of ``transport``.

    Each method posts, and returns what finishes.  ``parts``: one slice of dim 0 per rank.
    """

    def __init__(self, transport, rank: int, size: int):
        self.transport, self.rank, self.size = transport, rank, size

    def all_reduce(self, x, op: str, out, new: bool) -> tuple[Callable, int, int]:
        """``out`` ← the sum of everybody's ``x``; ``new``: it is not x.  Also returns the bytes
        that this rank sends, and in how many rounds of messages."""
        check(x)  # a vector made of any other would be a copy
        parts, whole = spans(x.size, self.size), out.reshape(-1)
        mine = whole[parts[self.rank]]
        add = self.scatter(x.reshape(-1), parts, op, mine, new)

        def finish():
            add()
            self.gather(mine, whole, parts).wait()
            return out

        return finish, x.nbytes + (self.size - 2) * mine.nbytes, 2

    def scatter(self, x, parts: tuple, op: str, into, new: bool) -> Callable:
        """``into`` ← the sum of this rank's part of everybody's ``x``; ``new``: it is not in x."""
        mine, rows = x[parts[self.rank]], len(into)
        received = xp.empty(((self.size - 1) * rows, *x.shape[1:]), x.dtype)
        places = spans(len(received), self.size - 1)
        places = (*places[: self.rank], slice(0, 0), *places[self.rank :])
        moving = self.transport.exchange(x, parts, received, places)

        def finish():
            moving.wait()
            if rows:
                everybodys = [received[place] for place in places]
                everybodys[self.rank] = mine
                add_up(everybodys, COMBINE[op], received[:rows], into)
            return into

        return finish

    def gather(self, mine, whole, parts: tuple):
        """Rank r's ``mine`` to its part of everybody else's ``whole``."""
        return self.transport.exchange(mine, (slice(0, len(mine)),) * self.size, whole, parts)


class Pair(Sums):
    """The sums of two ranks: one addition, and no order to keep but first and second."""

    def all_reduce(self, x, op: str, out, new: bool) -> tuple[Callable, int, int]:
        if x.nbytes > SHORT:
            return super().all_reduce(x, op, out, new)
        return self._add(x, x, op, out, new), x.nbytes, 1

    def scatter(self, x, parts: tuple, op: str, into, new: bool) -> Callable:
        return self._add(x[parts[self.rank]], x[parts[1 - self.rank]], op, into, new)

    def gather(self, mine, whole, parts: tuple):
        return self.transport.swap(mine, whole[parts[1 - self.rank]])

    def _add(self, mine, others, op: str, into, new: bool) -> Callable:
        """``into`` ← mine + what the other rank sends for my ``others``."""
        received = into if new else xp.empty(into.shape, into.dtype)
        moving = self.transport.swap(others, received)
        first, second = (received, mine) if self.rank else (mine, received)
        combine = COMBINE[op]

        def finish():
            moving.wait()
            if into.dtype.itemsize == 2:  # CuPy gives the sum of two bfloat16 as float32
                add_up((first, second), combine, None, into)
            else:
                combine(first, second, into)
            return into

        return finish


def add_up(parts: Sequence, combine: Callable, scratch, into) -> None:
    """``into`` ← parts[0] + parts[1] + ..., in this order; it may be one of them.  ``scratch`` may
    be the first or the second, and is overwritten."""
    total, *others = parts
    if into.dtype.itemsize == 2:
        total = total.astype(xp.float32)
        for other in others:
            combine(total, other, out=total)
        into[...] = total
    else:
        *between, last = others
        for other in between:
            total = combine(total, other, out=scratch)
        combine(total, last, out=into)
