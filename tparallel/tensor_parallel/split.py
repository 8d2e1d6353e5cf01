"""Which dim of which parameter is cut over tp: a table, and the three functions that use it.

W_q is stored as (D, H, K), W_kv as (D, 2, Hkv, K) and W_out as (H, K, D), so that every cut is one
plain slice: a rank's heads are a range of dim H.  A dim with fewer entries than ranks is shared:
entry i goes to n/size neighbours (key/value heads fewer than tp).  A parameter that is not in the
table is held whole by every tp rank.

Source: Shoeybi et al. 2019, section 3 and figure 3
"""

import numpy as np

from ..backend import xp
from ..comm.cut import pieces

SPLIT_DIM = {
    "attn.w_q": 1,  # columns, by head
    "attn.b_q": 0,
    "attn.w_kv": 2,
    "attn.b_kv": 1,
    "attn.w_out": 0,  # rows, by head
    "mlp.w_in": -1,  # columns; with a gate, of both halves
    "mlp.b_in": -1,
    "mlp.w_out": 0,  # rows
    "w_tok": 0,  # rows of the vocabulary, any number of them
}


def is_split(name: str) -> bool:
    return name in SPLIT_DIM


def part(size: int, rank: int, n: int) -> slice:
    """The indices that rank ``rank`` of ``n`` holds of a dim of this size."""
    if size < n:
        return slice(rank * size // n, rank * size // n + 1)
    counts = pieces(size, n)
    start = sum(counts[:rank])
    return slice(start, start + counts[rank])


def cut(name: str, shape: tuple[int, ...], rank: int, n: int) -> tuple[slice, ...]:
    """Where this rank's part of a parameter lies in the whole."""
    where = [slice(0, size) for size in shape]
    if is_split(name):
        where[SPLIT_DIM[name]] = part(shape[SPLIT_DIM[name]], rank, n)
    return tuple(where)


def counts_here(name: str, shape: tuple[int, ...], rank: int, n: int) -> bool:
    """Of the ranks that hold the same numbers, is this the first?  A sum over all parameters (the
    gradient norm) counts them there."""
    return all(cut(name, shape, r, n) != cut(name, shape, rank, n) for r in range(rank))


def shard_shape(name: str, shape: tuple[int, ...], rank: int, n: int) -> tuple[int, ...]:
    """The shape of this rank's part of a parameter."""
    return tuple(where.stop - where.start for where in cut(name, shape, rank, n))


def shard(p: dict, rank: int, n: int) -> dict:
    """One rank's part of a layer's parameters: a copy, contiguous."""
    return {name: xp.array(a[cut(name, a.shape, rank, n)], order="C") for name, a in p.items()}


def unshard(parts: list[dict], shapes: dict[str, tuple[int, ...]]) -> dict:
    """The whole layer, of these shapes, from all ranks' parts (on the host): undoes ``shard``."""
    out = {}
    for name, shape in shapes.items():
        out[name] = np.empty(shape, parts[0][name].dtype)
        for rank, p in enumerate(parts):
            out[name][cut(name, shape, rank, len(parts))] = p[name]
    return out
