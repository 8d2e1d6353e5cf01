"""Bytes that each rank holds, by kind.

States, with n = dp (or the shard group), Ψ_u the elements of a unit (``part.units``) and
shard = ⌈Ψ_u / n⌉ elements; bytes of an element by ``each``:

    params     Σ_u shard if ZeRO 3,      else n shard    (a unit is filled up to n equal shards)
    grads      Σ_u shard if ZeRO 2 or 3, else n shard
    optimizer  Σ_u shard if ZeRO 1 to 3, else n shard

Activations, what a micro-batch of R = B T tokens keeps from forward to backward (t = tp; g = 1,
or 2 where the mlp has a gate):

    block  R (2 D + 2) s         x̂ and 1/σ of two norms
           R 2 D i               their outputs, as they enter attention and mlp
           R (2 H K + (g + 1) F) / t      q, z, the activation's slope and output
           R 2 K ⌈Hkv / t⌉       k and v
           B kept H / t          of attention's probabilities: kept = T² with the plain kernels;
                                 the others (kernels.kept_scores) keep half of it
    embed  the tokens: 8 bytes each
    head   R (D + 1) s + R D i   x̂ and 1/σ, the norm's output
    loss   R (V + 1) at tp = 1, R (V + 2) else    exponentials, their sum (and, packed in the same
                                                 message, the target's score); with it the target:
                                                 8 bytes, and 1 more that says whose it is

and from the first half of its backward to the second, where the schedule runs them apart:

    block  R 4 D s + R 4 D       norms: x̂ and what came back; the inputs of products and their dy
           R (2 H K + (g + 1) F) / t + R 2 K ⌈Hkv / t⌉    as above, or the gradients of these
    embed  the tokens, and R D   head  R 2 D s + R (D + V)

A stage holds as many of both as its schedule has in flight: M under GPipe, min(M, S − stage) under
1F1B; in general the peak over its order, in which F adds the first, B exchanges it for the second,
and W, or a joined backward, takes it away.

Without sequence parallelism s = i = 1; with it s = 1/t, and i = 1 if the gathered input is kept,
1/t if it is gathered again.  Selective recomputation drops B kept H / t; full keeps R D s of a
block.
Dropout keeps nothing: its masks are looked up again.
Where activations are bfloat16, statistics (1/σ, sums of exponentials) are still float32, and the
logits at tp > 1 too.

Korthikanti et al. count a block of 16-bit elements, with F = 4 D: sbh (34 + 5as/h), under tp
sbh (10 + 24/t + 5as/ht), with sequence parallelism sbh (34 + 5as/h) / t.  Ours, of e-byte elements,
in the same letters (T = s, B = b, D = h, H = a): e sbh (16 + as/h) + 2e sb, under tp
e sbh (4 + 12/t + as/ht) + 2e sb, with sequence parallelism and inputs gathered again all over t.
At e = 2 that is 32, 8 + 24/t and 2as/h where the paper has 34, 10 + 24/t and 5as/h: the same arrays
but for dropout's, which ours looks up again (2 masks of sbh; a mask and a result of as²b), and for
our 1/σ of each token.  (All of this with H K = D, Hkv = H, no gate, and kept = T².)

Source: Rajbhandari et al. 2020, section 5 (states); Korthikanti et al. 2022, section 4 and table 2;
Narayanan et al. 2021, section 2.2 (in flight)
"""

from itertools import islice

import numpy as np

from .. import kernels
from ..config import Layout, ModelConfig, TrainConfig
from ..pipeline_parallel.schedule import in_flight
from .part import ITEMSIZE, Part, group, kinds, kv_heads, parts, schedule, shard, units

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
    kept, late = np.zeros((2, plan.chunks), int)  # bytes of a micro-batch
    for chunk in p.chunks:
        kept[chunk], late[chunk] = _per_microbatch(c, train, layout, p, chunk)
    return int(in_flight(plan.orders[p.pp], kept, late).max())


def _per_microbatch(
    c: ModelConfig, train: TrainConfig, layout: Layout, p: Part, chunk: int
) -> tuple[int, int]:
    """Bytes that a chunk keeps from forward to backward, and from one half of it to the other."""
    t, size, wide = layout.tp, ITEMSIZE[train.compute_dtype], ITEMSIZE[train.master_dtype]
    R = layout.rows(train.global_batch) * c.T
    outside = R // t if layout.sp else R  # tokens whose norms and residuals are computed here
    entered = R // t if layout.sp == "regather" else R
    inner = (kinds(c).inner + 1) * c.F
    cut = R * ((2 * c.H * c.K + inner) // t + 2 * c.K * kv_heads(c, t))
    kept = size * (outside * 2 * c.D + entered * 2 * c.D + cut) + wide * outside * 2
    if layout.recompute == "none":
        heads = layout.rows(train.global_batch) * c.H // t
        kept += heads * _scores(c, train)
    kept = size * outside * c.D if layout.recompute == "full" else kept
    late = size * (outside * 4 * c.D + R * 4 * c.D + cut)
    kept, late = (p.chunks[chunk] * bytes_ for bytes_ in (kept, late))
    if p.first and chunk == min(p.chunks):
        kept += R * ID
        late += R * (ID + size * c.D)
    if p.last and chunk == max(p.chunks):
        kept += size * (outside * c.D + entered * c.D) + wide * outside
        kept += R * (size * p.V + wide + ID if t == 1 else wide * (p.V + 2) + ID + 1)
        late += size * (outside * 2 * c.D + R * (c.D + p.V))
    return kept, late


def _scores(c: ModelConfig, train: TrainConfig) -> int:
    """Bytes that attention keeps for one head of one sequence."""
    size = ITEMSIZE[train.compute_dtype]
    if size < 4:  # then these are a GPU's kernels, which keep log-sums in float32
        return size * kernels.kept_scores(c.T, train.dropout, size, c.K)
    return size * kernels.kept_scores(c.T, train.dropout)


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
