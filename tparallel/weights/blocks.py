"""Where an array of ours lies in one of theirs: a pattern for each, in words known from einops.

    ours     D 1/2 Hkv K       (D, 2, Hkv, K), of the second dim the entry 1
    theirs   D (2/3 H K)       (D, 3 H K), of the last dim the third third

A word is a dim by the letter of its size, or ``i/n``: entry i of a dim of n.  A group in brackets
is one dim, its words from the slowest to the fastest.  Both patterns name the same letters, in the
order of each side: another order is a transposition.  A range of one letter (the heads of a tp
rank, its rows of the vocabulary) is then a plain slice on either side, and nothing else is read.
"""

from collections.abc import Mapping
from math import prod

Ranges = Mapping[str, slice]  # letter -> the part of it that is wanted


def groups(pattern: str) -> list[list[str]]:
    """``D (2/3 H K)`` -> [[D], [2/3, H, K]]."""
    out: list[list[str]] = []
    for i, part in enumerate(pattern.replace(")", "(").split("(")):
        out += [part.split()] if i % 2 else [[word] for word in part.split()]
    return out


def letters(pattern: str) -> list[str]:
    """The dims that are not fixed by an ``i/n``, in order."""
    return [word for group in groups(pattern) for word in group if "/" not in word]


def shape(pattern: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Of the whole array."""
    return tuple(prod(_size(word, sizes) for word in group) for group in groups(pattern))


def slices(pattern: str, sizes: Mapping[str, int], ranges: Ranges) -> tuple[slice, ...]:
    """The block that these ranges are, one slice per dim.

    Errors: ValueError where a group would need more than one slice.
    """
    return tuple(_slice(group, sizes, ranges) for group in groups(pattern))


def to_theirs(block, ours: str, theirs: str):
    """A block of ours in their order of letters and their number of dims."""
    order = [letters(ours).index(letter) for letter in letters(theirs)]
    sizes = dict(zip(letters(ours), block.shape))
    return block.transpose(order).reshape(_block_shape(theirs, sizes))


def to_ours(block, ours: str, theirs: str, sizes: Mapping[str, int]):
    """Undoes ``to_theirs``; ``sizes`` are those of the block."""
    order = [letters(theirs).index(letter) for letter in letters(ours)]
    return block.reshape([sizes[letter] for letter in letters(theirs)]).transpose(order)


def _block_shape(pattern: str, sizes: Mapping[str, int]) -> list[int]:
    return [prod(sizes[w] for w in group if "/" not in w) for group in groups(pattern)]


def _size(word: str, sizes: Mapping[str, int]) -> int:
    return int(word.split("/")[1]) if "/" in word else sizes[word]


def _slice(group: list[str], sizes: Mapping[str, int], ranges: Ranges) -> slice:
    start = last = 0
    count = 1
    for word in group:
        n = _size(word, sizes)
        i = int(word.split("/")[0]) if "/" in word else 0
        part = slice(i, i + 1) if "/" in word else ranges.get(word, slice(0, n))
        start, last = start * n + part.start, last * n + part.stop - 1
        count *= part.stop - part.start
    if last + 1 - start != count:
        raise ValueError(f"not one slice: {dict(ranges)} of ({' '.join(group)})")
    return slice(start, last + 1)
