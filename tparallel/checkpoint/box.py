"""Boxes: rectangular parts of a tensor, a slice for each dim.

However a layout cuts a tensor, what a rank holds of it is a handful of boxes; what one layout has
to read of the files of another is where their boxes overlap.
"""

from collections.abc import Iterator
from math import prod

from ..where import overlap as shared

Box = tuple[slice, ...]


def boxes(shape: tuple[int, ...], start: int, stop: int) -> Iterator[Box]:
    """Elements start:stop of a tensor of this shape, counted row by row, as boxes in this order:
    the rest of a row, whole rows, the beginning of a row (at most 2 · dims − 1)."""
    row = prod(shape[1:])
    while start < stop:
        i, rest = divmod(start, row)
        if rest or stop - start < row:
            end = min(stop, (i + 1) * row)
            parts = boxes(shape[1:], rest, end - i * row)
            yield from ((slice(i, i + 1), *part) for part in parts)
        else:
            end = stop - stop % row
            yield (slice(i, end // row), *(slice(0, size) for size in shape[1:]))
        start = end


def moved(box: Box, corner: Box, sign: int = 1) -> Box:
    """The box, counted from where ``corner`` counts from (−1: counted from the corner itself)."""
    steps = [sign * c.start for c in corner]
    return tuple(slice(s.start + step, s.stop + step) for s, step in zip(box, steps))


def overlap(a: Box, b: Box) -> Box | None:
    """What two boxes share; None if nothing."""
    both = tuple(map(shared, a, b))
    return both if all(s.start < s.stop for s in both) else None


def shape_of(box: Box) -> tuple[int, ...]:
    return tuple(s.stop - s.start for s in box)


def subscript(box: Box) -> str:
    """``[0:4, 8:16]``"""
    return f"[{', '.join(f'{s.start}:{s.stop}' for s in box)}]"
