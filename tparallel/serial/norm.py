"""Layer norm: y = g x̂ + b with x̂ = (x − mean) / √(var + ε), over the last dim.

Source: Ba, Kiros, Hinton 2016, section 3.
"""

from ..backend import xp

EPS = 1e-5


def layernorm_forward(x, g, b):
    """y = g x̂ + b.  Shapes: x, y (B, T, D); g, b (D)."""
    centred = x - x.mean(-1, keepdims=True)  # (B, T, D)
    rstd = 1 / xp.sqrt((centred * centred).mean(-1, keepdims=True) + EPS)  # (B, T, 1)
    xhat = centred * rstd  # (B, T, D)
    return xhat * g + b, (xhat, rstd)


def layernorm_backward_input(dy, cache, g):
    """dx = rstd (dx̂ − mean(dx̂) − x̂ mean(dx̂ x̂)) with dx̂ = g dy: two sums undo two means."""
    xhat, rstd = cache
    dxhat = dy * g  # (B, T, D)
    along = (dxhat * xhat).mean(-1, keepdims=True)  # (B, T, 1)
    dx = rstd * (dxhat - dxhat.mean(-1, keepdims=True) - xhat * along)  # (B, T, D)
    return dx, (dy, xhat)


def layernorm_backward_weight(wcache):
    """dg = Σ dy x̂ and db = Σ dy, over batch and sequence."""
    dy, xhat = wcache
    return (dy * xhat).sum((0, 1)), dy.sum((0, 1))
