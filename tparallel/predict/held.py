"""Bytes that each rank holds, by kind.

States, with n = dp, Ψ_u the elements of a unit (``part.units``) and shard = ⌈Ψ_u / n⌉:

    params     Σ_u shard if ZeRO 3,        else n shard    (a unit is filled up to n equal shards)
    grads      Σ_u shard if ZeRO 2 or 3,   else n shard
    optimizer  2 Σ_u shard if ZeRO 1 to 3, else n shard    (Adam's m and v; none for SGD)

Activations, what a micro-batch of R = B T tokens keeps from forward to backward (t = tp):

    block  R (4 D + 2 + (4 D + H T + 2 F) / t)   x̂ and 1/σ of two norms, their outputs | qkv, z,
                                                 probabilities, gelu's slope and output
    embed  the tokens: 8 bytes each
    head   R (2 D + 1)           x̂ and 1/σ, the norm's output
    loss   R (V + 1) at tp = 1, R (V + 2) else    exponentials, their sum (and, packed in the same
                                                 message, the target's score); with it the target:
                                                 8 bytes, and 1 more that says whose it is

times the micro-batches in flight on the stage: M under GPipe, min(M, S − stage) under 1F1B.

Source: Rajbhandari et al. 2020, section 5 (states); Korthikanti et al. 2022, section 4 (the same
count for other kernels); Narayanan et al. 2021, section 2.2 (in flight)
"""

from collections import Counter

from ..config import Layout, ModelConfig, TrainConfig
from .part import ITEMSIZE, Part, parts, shard, units

ID = 8  # bytes of a token number (int64)
SHARDED_FROM = {"params": 3, "grads": 2, "optimizer": 1}  # the ZeRO stage
IN_FLIGHT = {
    "": lambda M, S, stage: 1,
    "gpipe": lambda M, S, stage: M,
    "1f1b": lambda M, S, stage: min(M, S - stage),
}


def held(c: ModelConfig, train: TrainConfig, layout: Layout) -> dict[str, list[int]]:
    """{kind: bytes of each rank}.  ``gathered_peak`` is the largest layer that stage 3 puts
    together for use, gone when the next one comes; 0 under the other stages."""
    own = parts(c, layout)
    out = {kind: [_state(c, train, layout, p, kind) for p in own] for kind in SHARDED_FROM}
    out["activations_peak"] = [_activations(c, train, layout, p) for p in own]
    out["gathered_peak"] = [_gathered(c, train, layout, p) for p in own]
    return out


def _state(c: ModelConfig, train: TrainConfig, layout: Layout, p: Part, kind: str) -> int:
    copies = {"optimizer": 2 if train.optimizer == "adamw" else 0}.get(kind, 1)
    shards = 1 if layout.zero >= SHARDED_FROM[kind] else layout.dp
    elements = sum(shard(u.elements, layout.dp) for u in units(c, layout, p))
    return copies * shards * elements * ITEMSIZE[train.dtype]


def _activations(c: ModelConfig, train: TrainConfig, layout: Layout, p: Part) -> int:
    t, size = layout.tp, ITEMSIZE[train.dtype]
    token = p.blocks * size * (4 * c.D + 2 + (4 * c.D + c.H * c.T + 2 * c.F) // t)  # bytes
    if p.first:
        token += ID
    if p.last:
        token += size * (2 * c.D + 1)
        token += size * (p.V + 1) + ID if t == 1 else size * (p.V + 2) + ID + 1
    in_flight = IN_FLIGHT[layout.schedule](layout.microbatches, layout.pp, p.pp)
    return in_flight * layout.rows(train.global_batch) * c.T * token


def _gathered(c: ModelConfig, train: TrainConfig, layout: Layout, p: Part) -> int:
    if layout.zero < 3:
        return 0
    layers: Counter[str] = Counter()
    for u in units(c, layout, p):
        for layer in u.users:
            layers[layer] += layout.dp * shard(u.elements, layout.dp)
    return max(layers.values()) * ITEMSIZE[train.dtype]
