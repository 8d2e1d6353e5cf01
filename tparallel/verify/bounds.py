"""How large a difference may be.

In float64 what is measured is some 1e-15, and the bounds are constants: 1e-12, a thousand times
that, and 1e-10 for what AdamW has divided by √v + ε (ε = 1e-8 magnifies the rounding of a gradient
that is nearly zero).

In float32 a constant would be a guess; the bound is condition × γ_n.  A sum of n products, added
in any order, is the exact sum for factors that are each changed by at most γ_n = n u / (1 − n u),
u = 2⁻²⁴ (Higham 2002, section 3.1).  A float32 run is therefore an exact run whose weights are off
by γ_n at most, n the longest sum in the model; and ``condition`` is how many times further than
the weights a quantity moves.  It is measured: in float64, on one process, with random signs.
"""

from functools import lru_cache

import numpy as np

from ..config import ModelConfig, TrainConfig, replace
from .reference import batches, start, train_serially
from .seen import QUANTITIES, errors

SGD = dict.fromkeys(QUANTITIES, 1e-12)
FLOAT64 = {"sgd": SGD, "adamw": SGD | {"parameters": 1e-10, "optimizer state": 1e-10}}
UNIT_ROUNDOFF = 2.0**-24
DELTA, DRAWS = 1e-6, 3


def bound(quantity: str, model: ModelConfig, train: TrainConfig) -> float:
    """What the error of a quantity may be, in this case's dtype."""
    if train.dtype == "float64":
        return FLOAT64[train.optimizer][quantity]
    return condition(model, train)[quantity] * gamma(longest_sum(model, train))


def gamma(n: int) -> float:
    """γ_n: how far n roundings can take a number, relatively."""
    return n * UNIT_ROUNDOFF / (1 - n * UNIT_ROUNDOFF)


def longest_sum(model: ModelConfig, train: TrainConfig) -> int:
    """The most terms of any sum in forward, backward or the norm of one tensor."""
    tokens = train.global_batch * model.T
    return max(model.D, model.F, model.V, tokens)


@lru_cache(maxsize=64)
def condition(model: ModelConfig, train: TrainConfig) -> dict[str, float]:
    """{quantity: its relative change / δ, when every weight changes by ± δ}, at least 1."""
    rows, wide = batches(model, train), replace(train, dtype="float64")
    truth = train_serially(start(model, train), rows, model, wide)
    found = dict.fromkeys(QUANTITIES, 1.0)
    for draw in range(DRAWS):
        rng = np.random.default_rng(draw)
        moved = {
            layer: {n: a * (1 + DELTA * rng.choice((-1, 1), a.shape)) for n, a in p.items()}
            for layer, p in start(model, train).items()
        }
        for quantity, (error, _) in errors(train_serially(moved, rows, model, wide), truth).items():
            found[quantity] = max(found[quantity], error / DELTA)
    return found
