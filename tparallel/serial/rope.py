"""Rotary positions: each pair of numbers of a query or a key is turned by position · frequency.

(a, b) -> (a cos φ − b sin φ, b cos φ + a sin φ) with φ = t θ_i for position t.  The product of a
query and a key then depends on the distance of their positions only.  Number i of the first half
of a head makes a pair with number i of the second half, as in published Llama weights (the paper
takes neighbours: the same up to the order of the numbers).

A turn's backward is the turn by the opposite angle.

Shapes:  q (B, T, H, K); kv (B, T, 2, Hkv, K), of which the keys are turned; θ (K/2)
Source:  Su et al. 2021, section 3.2.2
"""

from math import ceil, floor, log, pi

import numpy as np

from ..backend import xp
from ..config import ModelConfig
from ..config.scaling import RopeScaling


def rope_forward(q, kv, at):
    """Turns q and the keys, in place: by at.rope's tables, from position at.start on."""
    return _turned(q, kv, at, 1)


def rope_backward(dq, dkv, at):
    """Turns dq and the keys' gradients back, in place."""
    return _turned(dq, dkv, at, -1)


def _turned(q, kv, at, sign: int):
    if at.rope is not None:
        where = at.positions(q.shape[1])
        cos, sin = (table[where][..., None, :] for table in (at.rope.cos, at.rope.sin))
        for x in (q, kv[:, :, 0]):
            a, b = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]  # views
            a[...], b[...] = a * cos - sign * b * sin, b * cos + sign * a * sin
    return q, kv


class Rope:
    """cos and sin of every position's angles: tables (T, K/2), the same for all layers."""

    def __init__(self, c: ModelConfig, dtype: str):
        angles = np.arange(c.T)[:, None] * frequencies(c)
        size = attention_factor(c.scaling)
        self.cos = xp.asarray((size * np.cos(angles)).astype(dtype))
        self.sin = xp.asarray((size * np.sin(angles)).astype(dtype))


def frequencies(c: ModelConfig) -> np.ndarray:
    """θ_i = base^(−2i/K), of which scaling keeps a share and divides the rest by its factor."""
    base = dynamic_base(c) if c.scaling.kind == "dynamic" else c.rope_theta
    theta = base ** (-2 * np.arange(c.K // 2) / c.K)
    if c.scaling.kind not in KEPT:
        return theta
    kept = KEPT[c.scaling.kind](c, theta)
    return kept * theta + (1 - kept) * theta / c.scaling.factor


def dynamic_base(c: ModelConfig) -> float:
    """A larger base for texts of more than ``original`` tokens; here every text may have T.

    Source: Peng et al. 2023, section 3.3 (the base: bloc97 2023, "NTK-aware scaled RoPE")
    """
    s = c.scaling
    longer = s.factor * max(c.T, s.original) / s.original - (s.factor - 1)
    return c.rope_theta * longer ** (c.K / max(1, c.K - 2))


def kept_by_llama3(c: ModelConfig, theta):
    """1 for frequencies with more than ``high`` full turns in the original text, 0 for fewer than
    ``low``, linear between.  Source: the published code of Llama 3.1 (2024)"""
    s = c.scaling
    return np.clip((s.original * theta / (2 * pi) - s.low) / (s.high - s.low), 0, 1)


def kept_by_yarn(c: ModelConfig, theta):
    """1 up to the pair that makes ``fast`` full turns in the original text, 0 from the one that
    makes ``slow``, linear in the pair's number between.  Source: Peng et al. 2023, section 3.2"""
    s = c.scaling
    fast, slow = (  # θ_i = 2 π turns / original, solved for i
        c.K * log(s.original / (2 * pi * turns)) / (2 * log(c.rope_theta))
        for turns in (s.fast, s.slow)
    )
    first, last = max(floor(fast), 0), min(ceil(slow), c.K - 1)
    return 1 - np.clip((np.arange(len(theta)) - first) / max(last - first, 1e-3), 0, 1)


KEPT = {"linear": lambda c, theta: 0.0, "llama3": kept_by_llama3, "yarn": kept_by_yarn}


def attention_factor(s: RopeScaling) -> float:
    """What queries and keys are both multiplied by: YaRN's temperature (section 3.4)."""
    return s.attention or (0.1 * log(max(s.factor, 1.0)) + 1.0 if s.kind == "yarn" else 1.0)
