"""The update of a parameter, in place, on arrays of any shape: elementwise, so that any cut of
the arrays (ZeRO's) gives the same bits.
"""

from math import cos, pi

from ..backend import xp
from ..config import TrainConfig


def adamw_update(
    w, g, m, v, step: int, lr: float, decay: float, c: TrainConfig, scale: float = 1.0
) -> None:
    """m ← β₁m + (1−β₁)g;  v ← β₂v + (1−β₂)g²;  w ← w − lr (m̂ / (√v̂ + ε) + λ w), where
    m̂ = m / (1 − β₁ᵗ), v̂ = v / (1 − β₂ᵗ), t = step + 1, and g is ``scale`` (clipping's factor)
    times the array of that name, which stays as it is.

    Source: Loshchilov and Hutter 2019, algorithm 2 (the decay does not pass through the moments).
    """
    g = g * scale
    m *= c.beta1
    m += (1 - c.beta1) * g
    v *= c.beta2
    v += (1 - c.beta2) * (g * g)
    mhat = m / (1 - c.beta1 ** (step + 1))
    vhat = v / (1 - c.beta2 ** (step + 1))
    w *= 1 - lr * decay
    w -= lr * (mhat / (xp.sqrt(vhat) + c.eps))


def sgd_update(w, g, lr: float, decay: float, scale: float = 1.0) -> None:
    """w ← w − lr (scale · g + λ w)."""
    w *= 1 - lr * decay
    w -= lr * (g * scale)


def learning_rate(step: int, c: TrainConfig) -> float:
    """Linear warm-up to lr over ``warmup`` steps, then half a cosine down to min_lr · lr."""
    if step < c.warmup:
        return c.lr * (step + 1) / c.warmup
    done = min(1.0, (step - c.warmup) / max(1, c.steps - c.warmup))
    return c.lr * (c.min_lr + (1 - c.min_lr) * 0.5 * (1 + cos(pi * done)))


def clip_factor(norm: float, c: TrainConfig) -> float:
    """What every gradient is multiplied by so that their common norm is at most ``clip``.

    Source: Pascanu, Mikolov, Bengio 2013, algorithm 1.
    """
    return min(1.0, c.clip / norm) if c.clip and norm else 1.0
