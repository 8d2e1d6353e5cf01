"""Norms over the last dim: y = g x̂ + b with x̂ = c / √(mean(c²) + ε).

    layer norm   c = x − mean(x)
    RMS norm     c = x, and no b: it neither centres nor shifts

The parameters say which it is: RMS norm has no ``b``.

Shapes:  x, y (B, T, D); g, b (D)
Source:  Ba, Kiros, Hinton 2016, section 3; Zhang and Sennrich 2019, section 4
"""

from ..backend import xp
from .linear import biased


def norm_forward(x, p, eps):
    c = centred(x, p)  # (B, T, D)
    rstd = 1 / xp.sqrt((c * c).mean(-1, keepdims=True) + eps)  # (B, T, 1)
    xhat = c * rstd  # (B, T, D)
    return biased(xhat * p["g"], p.get("b")), (xhat, rstd)


def norm_backward_input(dy, cache, p):
    """dc = rstd (dx̂ − x̂ mean(dx̂ x̂)) with dx̂ = g dy; then dx is dc, centred as x was."""
    xhat, rstd = cache
    dxhat = dy * p["g"]  # (B, T, D)
    along = (dxhat * xhat).mean(-1, keepdims=True)  # (B, T, 1)
    dc = rstd * (dxhat - xhat * along)  # (B, T, D)
    return centred(dc, p), (dy, xhat, [*p])


def norm_backward_weight(wcache):
    """dg = Σ dy x̂ and db = Σ dy, over batch and sequence."""
    dy, xhat, names = wcache
    grads = {"g": (dy * xhat).sum((0, 1))}
    if "b" in names:
        grads["b"] = dy.sum((0, 1))
    return grads


def centred(x, p):
    """x − mean(x) for layer norm, x for RMS norm: a symmetric matrix, so its own backward."""
    return x - x.mean(-1, keepdims=True) if "b" in p else x
