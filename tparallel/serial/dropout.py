"""Dropout whose random numbers are looked up, not drawn: what is dropped depends on *what it is*.

Every element has a place that no layout changes: the step, the layer, the site in the layer, and
its position in the array that one process would hold for the whole global batch.  A hash of these
and the seed decides.  So a rank that computes some of the rows, heads or positions drops the
elements that one process drops there, and backward asks again instead of keeping a mask.

y = x · keep / (1 − rate), keep = hash ≥ rate · 2⁶⁴; linear, so backward is the same function of dy.

Sources: Srivastava et al. 2014; where: Radford et al. 2018, section 4.1; counters in place of
state: Salmon et al. 2011; the hash: Steele, Lea, Flood 2014 (SplitMix64).
"""

from typing import NamedTuple

from ..backend import xp

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
TOKENS = 2**20  # room for each coordinate in a 64-bit position: T, D below 2²⁰, H below 2¹⁰
HEADS = 2**10


class Dropout(NamedTuple):
    """``key`` stands for seed, step and layer; ``row``, ``head`` and ``t`` are the global numbers
    of the first sequence, head and position that this process computes."""

    rate: float = 0.0
    key: int = 0
    row: int = 0
    head: int = 0
    t: int = 0

    def of(self, *parts: int | str) -> "Dropout":
        """The same, its key extended: by the seed and the step, then by the layer."""
        return self._replace(key=fold(self.key, *parts)) if self.rate else self

    def from_row(self, row: int) -> "Dropout":
        """For rows that begin ``row`` sequences further on."""
        return self._replace(row=self.row + row)

    def hidden(self, x, site: str):
        """x (B, T, D): an embedding, or what a branch adds to it."""
        return self._apply(x, site, (self.row, self.t, 0), (TOKENS, TOKENS))

    def heads(self, a, site: str):
        """a (B, Hkv, R, T, T): the probabilities of attention of Hkv R heads."""
        each = a.reshape(len(a), -1, *a.shape[3:])  # (B, H, T, T)
        start = (self.row, self.head, 0, 0)
        return self._apply(each, site, start, (HEADS, TOKENS, TOKENS)).reshape(a.shape)

    def _apply(self, x, site: str, start: tuple[int, ...], sizes: tuple[int, ...]):
        if not self.rate:
            return x
        y, key = xp.empty_like(x), xp.uint64(fold(self.key, site))
        for i in range(len(x)):  # a row at a time: the passes of the hash then stay in cache
            place = positions((start[0] + i, *start[1:]), (1, *x.shape[1:]), sizes)[0]
            keep = mix(place * xp.uint64(GOLDEN) + key) >= int(self.rate * 2**64)
            y[i] = x[i] * keep * (1 / (1 - self.rate))
        return y


NONE = Dropout()


def positions(start: tuple[int, ...], shape: tuple[int, ...], sizes: tuple[int, ...]):
    """The flat index, in a whole array of shape (any, *sizes), of each element of its box
    start : start + shape: Horner's rule, one dim at a time."""
    at = xp.arange(start[0], start[0] + shape[0], dtype="uint64")
    for first, n, size in zip(start[1:], shape[1:], sizes):
        at = at[..., None] * xp.uint64(size) + xp.arange(first, first + n, dtype="uint64")
    return at


def fold(key: int, *parts: int | str) -> int:
    """A key for each sequence of numbers and names."""
    for part in parts:
        for number in part.encode() if isinstance(part, str) else [part]:
            key = mix((key + 1) * GOLDEN + number & MASK)
    return key


def mix(z):
    """Every bit of the result depends on every bit of z: one 64-bit number, or an array."""
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31
