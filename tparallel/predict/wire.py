"""Bytes that each rank sends over each axis of the mesh in one training step.

What a verb costs rank r of n, for a vector of N elements (``N_r`` is piece r of N cut n ways):

    reduce_scatter  N − N_r        all_gather  (n − 1) N_r        all_reduce  N + (n − 2) N_r

What a step sends, with R = B T tokens to a micro-batch and M micro-batches:

    tp   M × all_reduce of R D elements, 4 for each block, 1 for the embedding, 1 for the head;
         and, with the head, all_reduces of R and of 2 R elements for the loss.
         Sequence parallelism: in place of each of them a reduce_scatter and an all_gather, and for
         the gradients of norms all_reduces of 4 D for each block and 2 D for the head (RMS norms,
         which have no shift: half of it); inputs
         gathered again: 2 more all_gathers for each block, 1 for the head.
         Full recomputation: 2 more sums (or gathers and scatters) for each block.
         Key/value heads that c = tp/Hkv > 1 ranks share: for each block an all_reduce over c ranks
         of 2 (D + 1) K (2 D K without biases)
    pp   M R D (R D / tp under sequence parallelism) for each chunk before or after one of this
         stage that lives on another stage; a tied table: one all_reduce of its gradient (of its
         shard, where ZeRO shards the sum) between the stages of the first and the last chunk
    dp   what ZeRO moves, and near and far where it works in groups: ``zero_wire.py``
    all  one all_reduce of 2 float64 numbers: loss and gradient norm

Source: Thakur, Rabenseifner, Gropp 2005 (verbs); Shoeybi et al. 2019, section 3 (tp);
Narayanan et al. 2021, section 3.2 (pp); Rajbhandari et al. 2020, section 7 (dp)
"""

from ..config import Layout, ModelConfig, TrainConfig
from .part import ITEMSIZE, Part, all_reduce, group, kinds, parts, schedule, shard
from .zero_wire import zero_wire

AXES = ("tp", "pp", "dp")


def axes(layout: Layout) -> tuple[str, ...]:
    """The axes over which a layout sends."""
    return (*AXES, "near", "far") if layout.shard_group else AXES


def wire(c: ModelConfig, train: TrainConfig, layout: Layout) -> dict[str, list[int]]:
    """{axis: bytes that each rank sends in a step}; a rank never sends to itself."""
    stored = ITEMSIZE[train.dtype]
    computed, wide = ITEMSIZE[train.compute_dtype], ITEMSIZE[train.master_dtype]
    out: dict[str, list[int]] = {axis: [] for axis in axes(layout)}
    for p in parts(c, layout):
        sent = dict.fromkeys(out, 0) | zero_wire(c, train, layout, p)
        sent["tp"] += _tp(c, train, layout, p) * computed + _loss(c, train, layout, p) * wide
        sent["pp"] += _pp(c, train, layout, p) * computed + _tied(c, layout, p) * stored
        for axis in AXES:
            sent[axis] += 8 * all_reduce(2, getattr(layout, axis), getattr(p, axis))
        for axis, size in sent.items():
            out[axis].append(size)
    return out


def _tp(c: ModelConfig, train: TrainConfig, layout: Layout, p: Part) -> int:
    t, R = layout.tp, layout.rows(train.global_batch) * c.T
    norm, _, qkv_bias, _ = kinds(c)
    again = 2 * p.blocks if layout.recompute == "full" else 0
    sums = (4 * p.blocks + again + p.first + p.last) * [R * c.D]
    if layout.sp:
        sums += p.blocks * [2 * norm * c.D] + p.last * [norm * c.D]
    sent = sum(all_reduce(N, t, p.tp) for N in sums)
    if layout.sp == "regather":
        sent += (2 * p.blocks + p.last) * (R * c.D - R * c.D // t)
    sharing = max(1, t // c.Hkv)
    sent += p.blocks * all_reduce(2 * (c.D + qkv_bias) * c.K, sharing, p.tp % sharing)
    return layout.microbatches * sent


def _loss(c: ModelConfig, train: TrainConfig, layout: Layout, p: Part) -> int:
    """The largest score of each token; the sums of exponentials and the targets' scores."""
    R = layout.rows(train.global_batch) * c.T
    sent = sum(all_reduce(N, layout.tp, p.tp) for N in p.last * [R, 2 * R])
    return layout.microbatches * sent


def _pp(c: ModelConfig, train: TrainConfig, layout: Layout, p: Part) -> int:
    R = layout.rows(train.global_batch) * c.T
    held = R // layout.tp if layout.sp else R
    where = schedule(layout).placement
    next_to = [n for chunk in p.chunks for n in (chunk - 1, chunk + 1) if 0 <= n < len(where)]
    return layout.microbatches * held * c.D * sum(where[n] != p.pp for n in next_to)


def _tied(c: ModelConfig, layout: Layout, p: Part) -> int:
    if not c.tied or p.first == p.last:
        return 0
    where = schedule(layout).placement
    table = shard(p.V * c.D, group(layout))
    whole = table if layout.zero else table * group(layout)
    return all_reduce(whole, 2, int(p.pp == max(where[0], where[-1])))
