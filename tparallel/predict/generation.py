"""What generating text sends and holds, and how long its stages idle.

One forward pass of B rows with T new tokens each (prefill: T of the longest row; decode: 1):

    tp   all_reduce of B T D elements, 2 for each block and 1 for the embedding; with the head an
         all_gather of B candidates of 16 bytes (value and id), k of them for top-k; or, for top-p
         alone, of B ⌈V / tp⌉ logits
    pp   B T D elements to the next stage; the last one sends B ids of 8 bytes to every other
    dp   nothing; under ZeRO-3 an all_gather of every unit, (n − 1) s elements as in zero_wire.py,
         and for each micro-batch and step an all_reduce of 8 bytes: who goes on

A rank holds 2 K ⌈Hkv / tp⌉ elements of keys and values for each token, row and block, with room
for the longest prompt and all new tokens but the last, in each of its M micro-batches.

With M micro-batches on S stages that take the same time, a stage works M units of every max(M, S)
in decode: a token must have left the last stage before the row's next one may enter the first.

Source: Pope et al. 2022, section 3 (tp); Huang et al. 2019, section 2.3 (the pipeline's idle share)
"""

from ..config import Layout, ModelConfig, TrainConfig
from .part import ITEMSIZE, Part, all_reduce, kv_heads, parts, shard, units

ID, CANDIDATE = 8, 16  # bytes
AXES = ("tp", "pp", "dp")


def wire(
    c: ModelConfig,
    train: TrainConfig,
    layout: Layout,
    lengths: list[int],
    new: int,
    candidates: int = 1,
    steps: list[list[int]] | None = None,
) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Bytes that each rank sends over each axis, in prefill and in decode.

    ``lengths`` of the prompts; ``candidates`` that each tp rank offers for a row (0: its logits);
    ``steps``: passes of each dp rank's micro-batches, where some ended before ``new``.
    """
    B, M = layout.rows(train.global_batch), layout.microbatches
    rows = lengths + [1] * (layout.dp * M * B - len(lengths))
    real = [any(at < len(lengths) for at in range(i, i + B)) for i in range(0, len(rows), B)]
    longest = [max(rows[i : i + B]) for i in range(0, len(rows), B)]
    prefill: dict[str, list[int]] = {axis: [] for axis in AXES}
    decode: dict[str, list[int]] = {axis: [] for axis in AXES}
    for p in parts(c, layout):
        mine = range(p.dp * M, (p.dp + 1) * M)
        together = range(layout.dp) if layout.zero == 3 else [p.dp]  # then all or none go on
        passes = [new * any(real[d * M + m] for d in together) for m in range(M)]
        passes = steps[p.dp] if steps else passes
        first = [one_pass(c, train, layout, p, longest[m], candidates) for m in mine]
        later = one_pass(c, train, layout, p, 1, candidates)
        asked = 8 * M * all_reduce(1, layout.dp, p.dp) * (layout.zero == 3)
        for axis in AXES:
            extra = asked if axis == "dp" else 0
            went = [sent[axis] for sent, n in zip(first, passes) if n]
            prefill[axis].append(sum(went) + extra)
            again = sum(max(0, n - 1) for n in passes)
            decode[axis].append(again * later[axis] + (new - 1) * extra)
    return prefill, decode


def one_pass(
    c: ModelConfig, train: TrainConfig, layout: Layout, p: Part, T: int, candidates: int
) -> dict[str, int]:
    """{axis: bytes that this rank sends} for one micro-batch."""
    t, S, stored = layout.tp, layout.pp, ITEMSIZE[train.dtype]
    B, size = layout.rows(train.global_batch), max(4, stored)
    widest = -(-c.V // t)
    offer = B * (min(candidates, widest) * CANDIDATE if candidates else widest * size)
    tp = (2 * p.blocks + p.first) * all_reduce(B * T * c.D, t, p.tp) * size
    tp += p.last * (t - 1) * offer
    pp = (S - 1) * B * ID if p.last else B * T * c.D * size
    dp = 0
    if layout.zero == 3:
        each = units(c, train, layout, p)
        dp = sum(u.visits * (layout.dp - 1) * shard(u.elements, layout.dp) for u in each) * stored
    return {"tp": tp, "pp": pp, "dp": dp}


def cache(
    c: ModelConfig, train: TrainConfig, layout: Layout, lengths: list[int], new: int
) -> list[int]:
    """Bytes of keys and values that each rank holds."""
    tokens = layout.rows(train.global_batch) * layout.microbatches * (max(lengths) + new - 1)
    each = 2 * c.K * kv_heads(c, layout.tp) * max(4, ITEMSIZE[train.dtype])
    return [tokens * p.blocks * each for p in parts(c, layout)]


def idle(layout: Layout) -> float:
    """The share of decode in which a stage computes nothing."""
    return 1 - layout.microbatches / max(layout.microbatches, layout.pp)
