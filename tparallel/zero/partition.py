"""A bucket of layers as one flat vector, cut into n equal shards (padded where it must be).

Source: Rajbhandari et al. 2020, section 5; flat parameter groups: Zhao et al. 2023, section 3.2.1
"""

from collections.abc import Callable, Hashable, Iterable, Iterator
from math import prod

from ..backend import xp


class Partition:
    """Where each named array lies in the vector, and where the shards are."""

    def __init__(self, shapes: dict[Hashable, tuple[int, ...]], n: int):
        self.shapes, self.n = shapes, n
        self.at: dict[Hashable, slice] = {}
        start = 0
        for name, shape in shapes.items():
            self.at[name] = slice(start, start + prod(shape))
            start += prod(shape)
        self.size = start
        self.shard = -(-start // n)
        self.padded = self.shard * n

    def flatten(self, arrays: dict, dtype):
        """The arrays end to end, and zeros up to a multiple of n."""
        flat = xp.zeros(self.padded, dtype)
        for name, where in self.at.items():
            flat[where] = arrays[name].reshape(-1)
        return flat

    def views(self, flat) -> dict:
        """The named arrays, as views into the vector."""
        return {name: flat[where].reshape(self.shapes[name]) for name, where in self.at.items()}

    def own(self, flat, rank: int):
        """Shard ``rank``, as a view."""
        return flat[rank * self.shard : (rank + 1) * self.shard]

    def spans(self, start: int, stop: int, wanted: Callable[[Hashable], bool]) -> list[slice]:
        """The parts of flat[start:stop] that belong to wanted names, counted from ``start``;
        neighbours are joined."""
        out: list[slice] = []
        for name, where in self.at.items():
            a, b = max(where.start, start) - start, min(where.stop, stop) - start
            if a >= b or not wanted(name):
                continue
            if out and out[-1].stop == a:
                a = out.pop().start
            out.append(slice(a, b))
        return out


def buckets(units: Iterable[tuple[str, dict]], limit: int) -> Iterator[dict[str, dict]]:
    """Consecutive units, joined while together they have at most ``limit`` elements; 0: each alone.

    Units come one by one, so that no rank need hold the whole model at the start.  A table that
    two layers share stays alone: both ends of the model ask for it, at different times.
    """
    joined: dict[str, dict] = {}
    for unit, p in units:
        size = sum(a.size for q in (*joined.values(), p) for a in q.values())
        if joined and (size > limit or "vocab" in (unit, *joined)):
            yield joined
            joined = {}
        joined[unit] = p
    if joined:
        yield joined
