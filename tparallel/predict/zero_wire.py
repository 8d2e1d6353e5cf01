"""Bytes that ZeRO moves in a step, over dp or, where it works in groups, over near and far.

For each unit (``part.units``), visited k times in a pass and cut into n shards of s = ⌈Ψ_u / n⌉
elements:

    stage 0  an all_reduce                                          2 (n−1) s
    stage 1  a reduce_scatter and an all_gather                     2 (n−1) s
    stage 2  a reduce_scatter per micro-batch, an all_gather  (M + 1) (n−1) s
    stage 3  2 k all_gathers and a reduce_scatter per micro-batch   (2 k + 1) M (n−1) s

With gradients added up locally there is one reduce_scatter instead of M.

    hybrid     the same over near (n is the size of a group); then, once per step, an all_reduce
               of s over far
    secondary  one all_gather over dp; the other 2 k M − 1 over near, where a rank holds
               s dp / n_near elements of the group's copy
    quantised  s parameters are a message of I(s, 8) bytes, s gradients one of I(s, 4), where
               I(N, bits) = ⌈N / 256⌉ (256 bits / 8 + 4).  With a secondary copy the gradients
               go over near, s n_far at once, then over far

Source: Rajbhandari et al. 2020, section 7; Zhao et al. 2023, section 3.2.2; Wang et al. 2023
"""

from ..config import Layout, ModelConfig, TrainConfig
from .held import SHARDED_FROM
from .part import ITEMSIZE, Part, all_reduce, group, shard, units


def sums(zero: int, M: int = 1, reduce_each: str = "microbatch") -> int:
    """How often a step sums the gradients over the ranks."""
    return M if zero >= SHARDED_FROM["grads"] and reduce_each == "microbatch" else 1


def gathers(zero: int, M: int = 1, visits: int = 1) -> int:
    """How often a step puts parameters together, or, at stage 0, summed gradients."""
    return 2 * visits * M if zero >= SHARDED_FROM["params"] else 1


def vectors(zero: int, M: int = 1, reduce_each: str = "microbatch") -> int:
    """Vectors of the model's size that the dp ranks exchange in a step: each costs (n−1)/n Ψ.

    With one micro-batch 2, 2, 2, 3 for stages 0 to 3 (Rajbhandari et al. 2020, section 7).
    """
    return sums(zero, M, reduce_each) + gathers(zero, M)


def zero_wire(c: ModelConfig, train: TrainConfig, layout: Layout, p: Part) -> dict[str, int]:
    """{axis: bytes that this rank sends for ZeRO in a step}."""
    dp, n, size, M = layout.dp, group(layout), ITEMSIZE[train.dtype], layout.microbatches
    near, far = layout.shard_group or 1, dp // (layout.shard_group or dp)
    sent = {"dp": 0} | dict.fromkeys(("near", "far") if layout.shard_group else (), 0)
    along = "dp" if n == dp else "near"  # the axis along which the shards lie
    for unit in units(c, train, layout, p):
        s = shard(unit.elements, n)
        often = gathers(layout.zero, M, unit.visits)
        if layout.secondary:
            sent["near"] += (often - 1) * (near - 1) * s * far * size
            often = 1
        message = integers(s, 8) if layout.quantise in ("weights", "both") else s * size
        sent[along] += often * (n - 1) * message
        often = sums(layout.zero, M, layout.reduce_each)
        if layout.quantise not in ("grads", "both"):
            sent[along] += often * (n - 1) * s * size
        elif layout.secondary:
            sent["near"] += often * (near - 1) * integers(s * far, 4)
            sent["far"] += often * (far - 1) * integers(s, 4)
        else:
            sent[along] += often * (n - 1) * integers(s, 4)
        if n < dp:
            sent["far"] += all_reduce(s, far, p.dp // near) * size
    return sent


def integers(N: int, bits: int, block: int = 256) -> int:
    """Bytes of a message of N numbers in blocks of integers, with a float32 scale each."""
    return -(-N // block) * (block * bits // 8 + 4)
