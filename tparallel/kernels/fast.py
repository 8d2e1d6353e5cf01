"""The plain text of ``serial/``, made fast for a CPU: same names, arguments and results.

A pass over memory that can be joined with its neighbour is (numba, in ``compiled.py``), and
attention goes through its scores in blocks (``attention.py``).
"""

from math import sqrt

import numpy as np

from ..lazy import on_first_use
from ..serial.loss import every_row
from . import attention
from .table import no_rows

compiled = on_first_use(f"{__package__}.compiled")  # numba alone takes 0.2 s
_heads = attention.BlockAttention(compiled)
heads_forward, heads_backward, scores_again = _heads.forward, _heads.backward, _heads.again
kept_scores = attention.kept_scores


def norm_forward(x, p, eps):
    y, xhat = np.empty(x.shape, x.dtype), np.empty(x.shape, x.dtype)
    rstd = np.empty((*x.shape[:-1], 1), x.dtype)
    arrays = _rows(x), p["g"], p.get("b"), _rows(y), _rows(xhat), rstd.reshape(-1)
    compiled.norm_forward(*arrays, x.dtype.type(eps))
    return y, (xhat, rstd)


def norm_backward_input(dy, cache, p):
    xhat, rstd = cache
    dx = np.empty(dy.shape, dy.dtype)
    arrays = _rows(dy), _rows(xhat), rstd.reshape(-1), p["g"], _rows(dx)
    compiled.norm_backward_input(*arrays, "b" in p)
    return dx, (dy, xhat, [*p])


def norm_backward_weight(wcache):
    dy, xhat, names = wcache
    grads = {name: np.zeros(dy.shape[-1], dy.dtype) for name in names}
    compiled.norm_backward_weight(_rows(dy), _rows(xhat), grads["g"], grads.get("b"))
    return grads


def activation_forward(h, b=None):
    a, slope = np.empty((*h.shape[:2], h.shape[-1]), h.dtype), np.empty(h.shape, h.dtype)
    if h.ndim == 4:
        gated = -1, 2, h.shape[-1]
        compiled.swiglu_forward(h.reshape(gated), b, _rows(a), slope.reshape(gated))
    else:
        compiled.gelu_forward(_rows(h), b, _rows(a), _rows(slope))
    return a, slope


def activation_backward(da, slope):
    if slope.ndim == 4:
        return da[:, :, None] * slope
    return np.multiply(da, slope, out=da)  # nobody needs da any more


def rope_forward(q, kv, at):
    return _turned(q, kv, at, 1)


def rope_backward(dq, dkv, at):
    return _turned(dq, dkv, at, -1)


def _turned(q, kv, at, sign: int):
    if at.rope is not None:
        B, T, _, K = q.shape
        where = np.ascontiguousarray(np.broadcast_to(at.positions(T), (B, T))).reshape(-1)
        for x, heads in ((q, q.shape[2]), (kv, kv.shape[3])):  # keys come before values
            x = x.reshape(B * T, -1, K)
            compiled.turn(x, heads, at.rope.cos, at.rope.sin, where, q.dtype.type(sign))
    return q, kv


def rows_backward(shape, numbers, dx):
    grad, places = no_rows(shape, numbers, dx.dtype)
    compiled.add_rows(grad.rows, places, _rows(dx))
    return grad


def cross_entropy_forward(logits, targets, count):
    top = logits.max(-1, keepdims=True)
    e, total = np.empty(logits.shape, logits.dtype), np.empty(top.shape, logits.dtype)
    compiled.cross_entropy(_rows(logits), top.reshape(-1), _rows(e), total.reshape(-1))
    picked = _rows(logits)[every_row(targets)].reshape(top.shape)
    loss = (np.log(total) + top - picked).sum() / count
    return loss, (e, total, targets, count)


def cross_entropy_backward(cache):
    e, total, targets, count = cache
    e *= 1 / (total * count)  # in place: it becomes dlogits
    _rows(e)[every_row(targets)] -= 1 / count
    return e


def adamw_update(w, g, m, v, step: int, lr: float, decay: float, c, scale: float = 1.0) -> None:
    T = w.dtype.type
    correct1, correct2 = 1 - c.beta1 ** (step + 1), sqrt(1 - c.beta2 ** (step + 1))
    # lr m̂ / (√v̂ + ε) with both corrections folded into two constants
    rate, eps = T(lr * correct2 / correct1), T(c.eps * correct2)
    flat = [a.reshape(-1) for a in (w, g, m, v)]
    compiled.adamw(*flat, T(scale), T(c.beta1), T(c.beta2), rate, eps, T(1 - lr * decay))


def _rows(x):
    return x.reshape(-1, x.shape[-1])
