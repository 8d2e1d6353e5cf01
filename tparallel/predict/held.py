"""Bytes that each rank holds, by kind.

States, with n = dp (or the shard group), Ψ_u the elements of a unit (``part.units``) and
shard = ⌈Ψ_u / n⌉ elements; bytes of an element by ``each``:

    params     Σ_u shard if ZeRO 3,      else n shard    (a unit is filled up to n equal shards)
    grads      Σ_u shard if ZeRO 2 or 3, else n shard
    optimizer  Σ_u shard if ZeRO 1 to 3, else n shard

Activations, what a micro-batch of R = B T tokens keeps from forward to backward (t = tp):

    block  R (4 D + 2 + (4 D + H T + 2 F) / t)   x̂ and 1/σ of two norms, their outputs | qkv, z,
                                                 probabilities, gelu's slope and output
    embed  the tokens: 8 bytes each
    head   R (2 D + 1)           x̂ and 1/σ, the norm's output
    loss   R (V + 1) at tp = 1, R (V + 2) else    exponentials, their sum (and, packed in the same
                                                 message, the target's score); with it the target:
                                                 8 bytes, and 1 more that says whose it is

and from the first half of its backward to the second, where the schedule runs them apart:

    block  R (8 D + (4 D + 2 F) / t)   the inputs of its products, and what came back to them
    embed  the tokens, and R D         head  R (3 D + V)

A stage holds as many of both as its schedule has in flight: M under GPipe, min(M, S − stage) under
1F1B; in general the peak over its order, in which F adds the first, B exchanges it for the second,
and W, or a joined backward, takes it away.

Source: Rajbhandari et al. 2020, section 5 (states); Korthikanti et al. 2022, section 4 (the same
count for other kernels); Narayanan et al. 2021, section 2.2 (in flight)
"""

from itertools import islice

import numpy as np

from ..config import Layout, ModelConfig, TrainConfig
from ..pipeline_parallel.schedule import in_flight
from .part import ITEMSIZE, Part, group, parts, schedule, shard, units

ID = 8  # bytes of a token number (int64)
SHARDED_FROM = {"params": 3, "grads": 2, "optimizer": 1}  # the ZeRO stage


def held(c: ModelConfig, train: TrainConfig, layout: Layout) -> dict[str, list[int]]:
    """{kind: bytes of each rank}.  ``gathered_peak`` is the largest layer that stage 3 puts
    together for use, or, as one is fetched while another computes (``overlap``), the largest
    pair of neighbours; 0 under the other stages."""
    own = parts(c, layout)
    by_rank = [_states(c, train, layout, p) for p in own]
    out = {kind: [states[kind] for states in by_rank] for kind in SHARDED_FROM}
    out["activations_peak"] = [_activations(c, train, layout, p) for p in own]
    out["gathered_peak"] = [_gathered(c, train, layout, p) for p in own]
    if layout.secondary:
        out["secondary"] = [_secondary(c, train, layout, p) for p in own]
    return out


def states(elements: int, n: int, zero: int, each: dict[str, int]) -> dict[str, int]:
    """Bytes of model states that one of n ranks holds of so many parameters, by kind.

    With ``each`` = 2, 2 and K = 12 bytes these are the ZeRO paper's 4Ψ + KΨ/n, 2Ψ + (2+K)Ψ/n
    and (4+K)Ψ/n, to the padding.  Source: Rajbhandari et al. 2020, section 5 and table 1
    """
    mine = shard(elements, n)
    return {k: each[k] * (mine if zero >= stage else n * mine) for k, stage in SHARDED_FROM.items()}


def each(train: TrainConfig) -> dict[str, int]:
    """Bytes per parameter: AdamW keeps m and v, half precision a float32 master copy."""
    size = ITEMSIZE[train.dtype]
    wide = max(size, 4)
    optimizer = wide * ((2 if train.optimizer == "adamw" else 0) + (size < 4))
    return {"params": size, "grads": size, "optimizer": optimizer}


def _states(c: ModelConfig, train: TrainConfig, layout: Layout, p: Part) -> dict[str, int]:
    of_units = [
        states(u.elements, group(layout), layout.zero, each(train))
        for u in units(c, train, layout, p)
    ]
    return {kind: sum(of[kind] for of in of_units) for kind in SHARDED_FROM}


def _activations(c: ModelConfig, train: TrainConfig, layout: Layout, p: Part) -> int:
    plan = schedule(layout)
    kept, late = np.zeros((2, plan.chunks), int)  # bytes per token
    for chunk in p.chunks:
        kept[chunk], late[chunk] = _per_token(c, train, layout, p, chunk)
    peak = int(in_flight(plan.orders[p.pp], kept, late).max())
    return peak * layout.rows(train.global_batch) * c.T


def _per_token(
    c: ModelConfig, train: TrainConfig, layout: Layout, p: Part, chunk: int
) -> tuple[int, int]:
    """Bytes that a chunk keeps from forward to backward, and from one half of it to the other."""
    t, size = layout.tp, max(4, ITEMSIZE[train.dtype])
    kept = p.chunks[chunk] * size * (4 * c.D + 2 + (4 * c.D + c.H * c.T + 2 * c.F) // t)
    late = p.chunks[chunk] * size * (8 * c.D + (4 * c.D + 2 * c.F) // t)
    if p.first and chunk == min(p.chunks):
        kept += ID
        late += ID + size * c.D
    if p.last and chunk == max(p.chunks):
        kept += size * (2 * c.D + 1)
        kept += size * (p.V + 1) + ID if t == 1 else size * (p.V + 2) + ID + 1
        late += size * (3 * c.D + p.V)
    return kept, late


def _secondary(c: ModelConfig, train: TrainConfig, layout: Layout, p: Part) -> int:
    """This rank's part of its group's copy."""
    far = layout.dp // layout.shard_group
    own = units(c, train, layout, p)
    return sum(far * shard(u.elements, layout.dp) for u in own) * ITEMSIZE[train.dtype]


def _gathered(c: ModelConfig, train: TrainConfig, layout: Layout, p: Part) -> int:
    if layout.zero < 3:
        return 0
    n, own = group(layout), units(c, train, layout, p)
    blocks = iter(f"block {i} of the stage" for i in range(p.blocks))
    at_once: list[set[str]] = []
    for chunk, count in p.chunks.items():
        layers = ["embed"] * (p.first and chunk == min(p.chunks)) + [*islice(blocks, count)]
        layers += ["head"] * (p.last and chunk == max(p.chunks))
        ahead = 2 if layout.overlap and len(layers) > 1 else 1
        at_once += [set(layers[i : i + ahead]) for i in range(len(layers) - ahead + 1)]
    gathered = [sum(n * shard(u.elements, n) for u in own if now & {*u.users}) for now in at_once]
    return max(gathered) * ITEMSIZE[train.dtype]
