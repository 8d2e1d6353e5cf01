"""Keys and values of the tokens so far: a new token then computes its own and no others.

Each block of this stage has room for the longest text, made before the first token.  Token t of a
row lies at place t; what lies behind a row's last token (the padding of a short prompt, places
that nobody has written yet) is hidden by the causal mask, because no query has come so far.

Held:    B S 2 Hkv/tp K elements for each block of the stage, of B rows with room for S tokens
Source:  Shazeer 2019, section 2.4; Pope et al. 2022, section 2
"""

from typing import Any, NamedTuple

from ..backend import xp


class KVCache:
    """``kv``: {block: (B, S, 2, Hkv/tp, K)}."""

    def __init__(self, blocks: list[str], rows: int, length: int, heads: int, K: int, dtype: str):
        shape = rows, length, 2, heads, K
        self.kv = {block: xp.zeros(shape, dtype) for block in blocks}  # finite: 0 · NaN is NaN

    def past(self, start: Any, end: int) -> "Past":
        """As a context wants it: new tokens come from ``start`` on (a number, or (B, 1) where rows
        differ); then the longest row has ``end`` of them."""
        return Past(self.kv, start, end)

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self.kv.values())


class Past(NamedTuple):
    """What ``Context.past`` is while tokens are generated."""

    kv: Any  # of every block; after ``of``, of one
    start: Any
    end: int

    def of(self, layer: str | int) -> "Past":
        return self._replace(kv=self.kv.get(layer))

    def extend(self, kv):
        """kv (B, T, 2, Hkv/tp, K) put into its places -> all so far, (B, end, 2, Hkv/tp, K)."""
        rows, places = xp.arange(len(kv))[:, None], self.start + xp.arange(kv.shape[1])
        self.kv[rows, places] = kv
        return self.kv[:, : self.end]
