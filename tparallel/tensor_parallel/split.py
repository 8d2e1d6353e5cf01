"""Which dim of which parameter is cut over tp: a table, and the three functions that use it.

W_qkv is stored as (D, 3, H, K) and W_out as (H, K, D), so that every cut is one plain slice:
a rank's heads are a range of dim H of q, k and v alike.  A parameter that is not in the table is
held whole by every tp rank, and its gradient comes out the same on each of them.

Source: Shoeybi et al. 2019, section 3 and figure 3
"""

import numpy as np

from ..backend import xp
from ..comm.axis import pieces

SPLIT_DIM = {
    "attn.w_qkv": 2,  # columns, by head
    "attn.b_qkv": 1,
    "attn.w_out": 0,  # rows, by head
    "mlp.w_in": 1,  # columns
    "mlp.b_in": 0,
    "mlp.w_out": 0,  # rows
    "w_tok": 0,  # rows of the vocabulary, any number of them
}


def is_split(name: str) -> bool:
    return name in SPLIT_DIM


def part(size: int, rank: int, n: int) -> slice:
    """The indices that rank ``rank`` of ``n`` holds of a dim of this size."""
    counts = pieces(size, n)
    start = sum(counts[:rank])
    return slice(start, start + counts[rank])


def shard_shape(name: str, shape: tuple[int, ...], rank: int, n: int) -> tuple[int, ...]:
    """The shape of this rank's part of a parameter."""
    if not is_split(name):
        return shape
    dim = SPLIT_DIM[name]
    return (*shape[:dim], pieces(shape[dim], n)[rank], *shape[dim + 1 :])


def shard(p: dict, rank: int, n: int) -> dict:
    """One rank's part of a layer's parameters: a copy, contiguous."""
    out = {}
    for name, a in p.items():
        cut = [slice(None)] * a.ndim
        if is_split(name):
            cut[SPLIT_DIM[name]] = part(a.shape[SPLIT_DIM[name]], rank, n)
        out[name] = xp.array(a[tuple(cut)], order="C")
    return out


def unshard(parts: list[dict]) -> dict:
    """The whole layer from all ranks' parts (on the host), in rank order: undoes ``shard``."""
    return {
        name: np.concatenate([p[name] for p in parts], SPLIT_DIM[name]) if is_split(name) else a
        for name, a in parts[0].items()
    }
