"""Bytes that each rank sends over each axis of the mesh in one training step.

What a verb costs rank r of n, for a vector of N elements (``N_r`` is piece r of N cut n ways):

    reduce_scatter  N − N_r        all_gather  (n − 1) N_r        all_reduce  N + (n − 2) N_r

What a step sends, with R = B T tokens to a micro-batch and M micro-batches:

    tp   M × all_reduce of R D elements, 4 for each block, 1 for the embedding, 1 for the head;
         and, with the head, all_reduces of R and of 2 R elements for the loss
    pp   M R D for each chunk before or after one of this stage that lives on another stage; a tied
         table: one all_reduce of its gradient (of its shard, where ZeRO shards the sum) between
         the stages of the first and the last chunk
    dp   for each unit (``part.units``), of n s elements with s = ⌈Ψ_u / n⌉, used by k layers here:
         stage 0  an all_reduce                                          2 (n−1) s
         stage 1  a reduce_scatter and an all_gather                     2 (n−1) s
         stage 2  a reduce_scatter per micro-batch, an all_gather  (M + 1) (n−1) s
         stage 3  2 k all_gathers and a reduce_scatter, each per micro-batch
                                                           (2 k + 1) M (n−1) s
         with gradients added up locally, once per step instead of M times
    shard, replicas  under hybrid sharding: n is the shard group, and the sums above go over
         ``shard``; then, once per step, an all_reduce of each s over ``replicas``
    all  one all_reduce of 2 float64 numbers: loss and gradient norm

Source: Thakur, Rabenseifner, Gropp 2005 (verbs); Shoeybi et al. 2019, section 3 (tp);
Narayanan et al. 2021, section 3.2 (pp); Rajbhandari et al. 2020, section 7 (dp)
"""

from ..config import Layout, ModelConfig, TrainConfig
from .held import SHARDED_FROM
from .part import ITEMSIZE, Part, cut, group, parts, schedule, shard, units

AXES = ("tp", "pp", "dp")


def axes(layout: Layout) -> tuple[str, ...]:
    """The axes over which a layout sends."""
    return (*AXES, "shard", "replicas") if layout.shard_group else AXES


def wire(c: ModelConfig, train: TrainConfig, layout: Layout) -> dict[str, list[int]]:
    """{axis: bytes that each rank sends in a step}; a rank never sends to itself."""
    sharding = "shard" if layout.shard_group else "dp"
    elements = {"tp": _tp, "pp": _pp, sharding: _dp, "replicas": _replicas}
    # activations travel in the dtype that computes, parameters and gradients as they are stored
    stored = ITEMSIZE[train.dtype]
    size = {"tp": max(4, stored), "pp": max(4, stored)}
    out: dict[str, list[int]] = {axis: [] for axis in axes(layout)}
    for p in parts(c, layout):
        for axis in out:
            sent = elements[axis](c, train, layout, p) if axis in elements else 0
            sent *= size.get(axis, stored)
            if axis in AXES:
                sent += 8 * all_reduce(2, getattr(layout, axis), getattr(p, axis))
            if axis == "pp":
                sent += stored * _tied(c, layout, p)
            out[axis].append(sent)
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
    where = schedule(layout).placement
    next_to = [n for chunk in p.chunks for n in (chunk - 1, chunk + 1) if 0 <= n < len(where)]
    return layout.microbatches * R * c.D * sum(where[n] != p.pp for n in next_to)


def _tied(c: ModelConfig, layout: Layout, p: Part) -> int:
    if not c.tied or p.first == p.last:
        return 0
    where = schedule(layout).placement
    table = shard(p.V * c.D, group(layout))
    whole = table if layout.zero else table * group(layout)
    return all_reduce(whole, 2, int(p.pp == max(where[0], where[-1])))


def vectors(zero: int, M: int = 1, reduce_each: str = "microbatch", users: int = 1) -> int:
    """Vectors of the model's size that the dp ranks exchange in a step: each costs (n−1)/n Ψ.

    One micro-batch: 2, 2, 2, 3 for stages 0 to 3 (Rajbhandari et al. 2020, section 7).
    """
    sums = M if zero >= SHARDED_FROM["grads"] and reduce_each == "microbatch" else 1
    gathers = 2 * users * M if zero >= SHARDED_FROM["params"] else 1
    return sums + gathers


def _dp(c: ModelConfig, train: TrainConfig, layout: Layout, p: Part) -> int:
    n, M = group(layout), layout.microbatches
    return sum(
        vectors(layout.zero, M, layout.reduce_each, len(u.users)) * (n - 1) * shard(u.elements, n)
        for u in units(c, train, layout, p)
    )


def _replicas(c: ModelConfig, train: TrainConfig, layout: Layout, p: Part) -> int:
    n, copies = group(layout), layout.dp // group(layout)
    return sum(
        all_reduce(shard(u.elements, n), copies, p.dp // n) for u in units(c, train, layout, p)
    )
