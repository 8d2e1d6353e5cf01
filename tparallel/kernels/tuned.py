"""The plain text of ``serial/``, made fast for a CPU by NumPy alone: same names and results.

NumPy goes over memory once for every operation.  Here all operations of a formula are done on a few
rows, which stay in the core's cache meanwhile, and then on the next, in place wherever they can be.
Sums along a row are products with a vector of ones, which BLAS does several times faster.
Attention goes through its scores in blocks (``attention.py``, ``scores.py``).
"""

from math import sqrt

import numpy as np

from ..serial.activation import A, C
from ..serial.loss import every_row
from . import attention, plain, scores
from .table import no_rows

CACHED = 2**16  # numbers of one array at a time: several arrays of them fit into a core's cache

_heads = attention.BlockAttention(scores)
heads_forward, heads_backward, scores_again = _heads.forward, _heads.backward, _heads.again
kept_scores = attention.kept_scores
rope_forward, rope_backward = plain.rope_forward, plain.rope_backward


def norm_forward(x, p, eps):
    y, xhat = np.empty(x.shape, x.dtype), np.empty(x.shape, x.dtype)
    rstd = np.empty((*x.shape[:-1], 1), x.dtype)
    D, b = x.shape[-1], p.get("b")
    mean = np.full((D, 1), 1 / D, x.dtype)
    for c, r, hat, out in _chunks(x, rstd, xhat, y):
        if b is not None:
            c = np.subtract(c, c @ mean, out=hat)
        np.vecdot(c, c, out=r[:, 0])
        r /= D
        r += eps
        np.sqrt(r, out=r)
        np.divide(1, r, out=r)
        np.multiply(c, r, out=hat)
        np.multiply(hat, p["g"], out=out)
        if b is not None:
            out += b
    return y, (xhat, rstd)


def norm_backward_input(dy, cache, p):
    xhat, rstd = cache
    dx, D = np.empty(dy.shape, dy.dtype), dy.shape[-1]
    mean = np.full((D, 1), 1 / D, dy.dtype)
    for d, hat, r, out in _chunks(dy, xhat, rstd, dx):
        np.multiply(d, p["g"], out=out)
        along = np.vecdot(out, hat)[:, None] / D
        if "b" in p:
            out -= out @ mean
        out -= hat * along
        out *= r
    return dx, (dy, xhat, [*p])


def norm_backward_weight(wcache):
    dy, xhat, names = wcache
    grads = {name: np.zeros(dy.shape[-1], dy.dtype) for name in names}
    for d, hat in _chunks(dy, xhat):
        ones = np.ones(len(d), d.dtype)
        grads["g"] += ones @ (d * hat)
        if "b" in grads:
            grads["b"] += ones @ d
    return grads


def activation_forward(h, b=None):
    a, slope = np.empty((*h.shape[:2], h.shape[-1]), h.dtype), np.empty(h.shape, h.dtype)
    form = _swiglu if h.ndim == 4 else _gelu
    for u, out, steep in _chunks(h, a, slope):
        form(u, out, steep, b)
    return a, slope


def _gelu(h, a, slope, b):
    """With s = (1 + tanh u) / 2: a = h s, and its slope s + a (1 − s) 2 u'."""
    h = h if b is None else h + b
    square = np.square(h)
    u = square * (C * A)
    u += C
    u *= h
    s = _sigmoid_of_twice(u, out=slope)
    np.multiply(h, s, out=a)
    square *= 6 * C * A
    square += 2 * C
    square *= a
    square *= np.subtract(1, s, out=u)
    slope += square


def _swiglu(h, a, slope, b):
    h = h if b is None else h + b
    gate, up, by_gate, silu = h[:, 0], h[:, 1], slope[:, 0], slope[:, 1]
    half = gate * 0.5
    s = _sigmoid_of_twice(half, out=half)
    np.multiply(gate, s, out=silu)
    np.multiply(silu, up, out=a)
    np.subtract(1, s, out=by_gate)
    by_gate *= silu
    by_gate += s
    by_gate *= up


def _sigmoid_of_twice(x, out):
    """σ(2x) = (1 + tanh x) / 2: no e^x that overflows, and faster."""
    np.tanh(x, out=out)
    out += 1
    out *= 0.5
    return out


def activation_backward(da, slope):
    if slope.ndim == 4:
        return da[:, :, None] * slope
    return np.multiply(da, slope, out=da)  # nobody needs da any more


def rows_backward(shape, numbers, dx):
    grad, places = no_rows(shape, numbers, dx.dtype)
    for at, row in zip(places.tolist(), dx.reshape(-1, shape[1])):
        grad.rows[at] += row
    return grad


def cross_entropy_forward(logits, targets, count):
    top, e = logits.max(-1, keepdims=True), np.empty(logits.shape, logits.dtype)
    total = np.empty(top.shape, logits.dtype)
    for row, high, out, sums in _chunks(logits, top, e, total):
        np.subtract(row, high, out=out)
        scores.exp(out)
        np.matmul(out, np.ones((out.shape[-1], 1), out.dtype), out=sums)
    picked = logits.reshape(-1, logits.shape[-1])[every_row(targets)].reshape(top.shape)
    loss = (np.log(total) + top - picked).sum() / count
    return loss, (e, total, targets, count)


def cross_entropy_backward(cache):
    e, total, targets, count = cache
    for row, sums in _chunks(e, total):
        row *= 1 / (sums * count)  # in place: it becomes dlogits
    e.reshape(-1, e.shape[-1])[every_row(targets)] -= 1 / count
    return e


def adamw_update(w, g, m, v, step: int, lr: float, decay: float, c, scale: float = 1.0) -> None:
    correct1, correct2 = 1 - c.beta1 ** (step + 1), sqrt(1 - c.beta2 ** (step + 1))
    # lr m̂ / (√v̂ + ε) with both corrections folded into two constants
    rate, eps = lr * correct2 / correct1, c.eps * correct2
    new, room = scale * (1 - c.beta1), np.empty(CACHED, w.dtype)
    w, g, m, v = (a.reshape(-1) for a in (w, g, m, v))
    for i in range(0, w.size, CACHED):
        part = slice(i, i + CACHED)
        W, M, V = w[part], m[part], v[part]
        t = np.multiply(g[part], new, out=room[: W.size])
        M *= c.beta1
        M += t
        t *= t
        t *= (1 - c.beta2) / (1 - c.beta1) ** 2
        V *= c.beta2
        V += t
        np.sqrt(V, out=t)
        t += eps
        np.divide(M, t, out=t)
        t *= rate
        if decay:
            W *= 1 - lr * decay
        W -= t


def _chunks(x, *more):
    """A few rows of every array at a time: x (B, T, ...) as (rows, ...), and so the others.

    What is the same for all rows, or all along a row, NumPy first spells out in a buffer where that
    has room for several rows: it takes longer than the operation, so here it has room for one.
    """
    flat = [a.reshape(-1, *a.shape[2:]) for a in (x, *more)]
    along = flat[0][0].size
    rows = max(1, CACHED // along)
    with np.errstate():  # gives the buffer its size back
        np.setbufsize(max(16, along // 16 * 16))  # a multiple of 16
        for i in range(0, len(flat[0]), rows):
            yield [a[i : i + rows] for a in flat]
