"""Bytes that each rank sends over each axis of the mesh in one training step.

What a verb costs rank r of n, for a vector of N elements (``N_r`` is piece r of N cut n ways):

    reduce_scatter  N − N_r        all_gather  (n − 1) N_r        all_reduce  N + (n − 2) N_r

What a step sends, with R = B T tokens to a micro-batch and M micro-batches:

    tp   M × all_reduce of R D elements, 4 for each block, 1 for the embedding, 1 for the head;
         and, with the head, all_reduces of R and of 2 R elements for the loss
    pp   M R D for each neighbour of the stage; a tied table: one all_reduce of its gradient (of
         its shard, where ZeRO shards the sum) between the first and the last stage
    dp   for each unit (``part.units``), of n s elements with s = ⌈Ψ_u / n⌉, used by k layers here:
         stage 0  an all_reduce                                          2 (n−1) s
         stage 1  a reduce_scatter and an all_gather                     2 (n−1) s
         stage 2  k M reduce_scatters and an all_gather           (k M + 1) (n−1) s
         stage 3  2 k M all_gathers and k M reduce_scatters         3 k M (n−1) s
    all  one all_reduce of 2 float64 numbers: loss and gradient norm

Source: Thakur, Rabenseifner, Gropp 2005 (verbs); Shoeybi et al. 2019, section 3 (tp);
Narayanan et al. 2021, section 3.2 (pp); Rajbhandari et al. 2020, section 7 (dp)
"""

from ..config import Layout, ModelConfig, TrainConfig
from .part import ITEMSIZE, Part, cut, parts, shard, units

AXES = ("tp", "pp", "dp")


def wire(c: ModelConfig, train: TrainConfig, layout: Layout) -> dict[str, list[int]]:
    """{axis: bytes that each rank sends in a step}; a rank never sends to itself."""
    elements = {"tp": _tp, "pp": _pp, "dp": _dp}
    out: dict[str, list[int]] = {axis: [] for axis in AXES}
    for p in parts(c, layout):
        for axis in AXES:
            n = getattr(layout, axis)
            sent = elements[axis](c, train, layout, p) * ITEMSIZE[train.dtype] if n > 1 else 0
            out[axis].append(sent + 8 * all_reduce(2, n, getattr(p, axis)))
    return out


def all_reduce(N: int, n: int, rank: int) -> int:
    """Elements that one rank sends for a sum of N."""
    return N + (n - 2) * cut(N, n, rank) if n > 1 else 0


def _tp(c: ModelConfig, train: TrainConfig, layout: Layout, p: Part) -> int:
    R = layout.rows(train.global_batch) * c.T
    sums = (4 * p.blocks + p.first + p.last) * [R * c.D] + p.last * [R, 2 * R]
    return layout.microbatches * sum(all_reduce(N, layout.tp, p.tp) for N in sums)


def _pp(c: ModelConfig, train: TrainConfig, layout: Layout, p: Part) -> int:
    R = layout.rows(train.global_batch) * c.T
    sent = layout.microbatches * R * c.D * ((not p.first) + (not p.last))
    if c.tied and (p.first or p.last):
        table = shard(p.V * c.D, layout.dp)
        sent += all_reduce(table if layout.zero else table * layout.dp, 2, 0 if p.first else 1)
    return sent


def _dp(c: ModelConfig, train: TrainConfig, layout: Layout, p: Part) -> int:
    n, M = layout.dp, layout.microbatches
    sent = 0
    for unit in units(c, layout, p):
        k = len(unit.users)
        messages = {0: 2, 1: 2, 2: k * M + 1, 3: 3 * k * M}[layout.zero]
        sent += messages * (n - 1) * shard(unit.elements, n)
    return sent
