"""A layer as one flat vector, cut into n equal shards (padded with zeros where it must be).

Source: Rajbhandari et al. 2020, section 5; flat parameter groups: Zhao et al. 2023, section 3.2.1
"""

from collections.abc import Callable
from math import prod

from ..backend import xp


class Partition:
    """Where each named array lies in the vector, and where the shards are."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], n: int):
        self.shapes, self.n = shapes, n
        self.at: dict[str, slice] = {}
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

    def spans(self, start: int, stop: int, wanted: Callable[[str], bool]) -> list[slice]:
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
