"""The plain text of ``serial/``, made fast for a GPU: same names, arguments and results.

A GPU's elementwise work is limited by memory, so that the kernels here are passes joined with
their neighbours: short formulas for CuPy to compile, and a little CUDA for what goes along rows
(rows.py).  Attention never has a T × T array for longer than a block (device_heads.py).

Activations may be bfloat16: they are read and written in it, and every kernel computes in float32
(W, where T is what it reads and writes).  CuPy gives arithmetic on its bfloat16 as float.

Rehearsed on the tests' stand-in for CuPy, which compiles these formulas for a CPU; not yet run on
a device.
"""

from math import sqrt

import numpy as np

from ..backend import xp
from ..serial.activation import A, C
from ..serial.linear import bias_backward
from . import flash, rows
from .device_heads import heads_backward, heads_forward, kept_scores, scores_again
from .plain import activation_backward
from .plain import rows_backward as plain_rows_backward

__all__ = [
    "activation_backward",
    "heads_backward",
    "heads_forward",
    "kept_scores",
    "scores_again",
]

HALVES = True  # what is read and written may be bfloat16
ATTENTION = flash.name

sum_of_products = {
    wide: xp.ReductionKernel(
        "T x, T y", f"{wide} z", "x * y", "a + b", "z = a", "0", "sum_of_products"
    )
    for wide in ("float32", "float64")
}
GELU = f"""
    typedef decltype(h * h) W;
    const W x = h + b, square = x * x;
    const W s = W(1) / (W(1) + exp(-x * (W({2 * C!r}) + W({2 * C * A!r}) * square)));
    a = x * s;
    slope = s + x * s * (W(1) - s) * (W({2 * C!r}) + W({6 * C * A!r}) * square)
"""  # (1 + tanh u) / 2 = 1 / (1 + e^-2u)
gelu = xp.ElementwiseKernel("T h, T b", "T a, T slope", GELU, "gelu")
swiglu = xp.ElementwiseKernel(
    "T gate, T up",
    "T a, T dgate, T dup",
    """
    typedef decltype(gate * gate) W;
    const W s = W(1) / (W(1) + exp(-W(gate)));
    const W silu = gate * s;
    a = silu * up;
    dgate = up * (s + silu * (W(1) - s));
    dup = silu
    """,
    "swiglu",
)
turn = xp.ElementwiseKernel(
    "W cos, W sin, W sign", "T a, T b",
    "const W x = a, y = b; a = x * cos - sign * y * sin; b = y * cos + sign * x * sin", "turn",
)  # fmt: skip
adamw = xp.ElementwiseKernel(
    "G g, T scale, T beta1, T beta2, T rate, T eps, T keep",
    "T w, T m, T v",
    """
    const T x = g * scale;
    m = beta1 * m + (T(1) - beta1) * x;
    v = beta2 * v + (T(1) - beta2) * x * x;
    w = w * keep - rate * m / (sqrt(v) + eps)
    """,
    "adamw",
)


def norm_forward(x, p, eps):
    y, xhat, rstd = rows.norm_forward(x, p["g"], p.get("b"), eps)
    return y, (xhat, rstd)


def norm_backward_input(dy, cache, p):
    xhat, rstd = cache
    dx = rows.norm_backward(dy, p["g"], xhat, rstd, centred="b" in p)
    return dx, (dy, xhat, [*p])


def norm_backward_weight(wcache):
    dy, xhat, names = wcache
    along_t = sum_of_products[rows.sums_dtype(dy.dtype).name]
    dg = along_t(dy, xhat, axis=1).sum(0)  # in two steps: more blocks of threads have work
    return {"g": dg.astype(dy.dtype, copy=False), **bias_backward(names, b=dy)}


def activation_forward(h, b=None):
    if h.ndim < 4:
        return gelu(h, 0.0 if b is None else b)
    h = h if b is None else h + b
    a, slope = xp.empty((*h.shape[:2], h.shape[-1]), h.dtype), xp.empty(h.shape, h.dtype)
    swiglu(h[:, :, 0], h[:, :, 1], a, slope[:, :, 0], slope[:, :, 1])
    return a, slope


def rope_forward(q, kv, at):
    return _turned(q, kv, at, 1)


def rope_backward(dq, dkv, at):
    return _turned(dq, dkv, at, -1)


def _turned(q, kv, at, sign: int):
    if at.rope is not None:
        where = at.positions(q.shape[1])
        cos, sin = (table[where][..., None, :] for table in (at.rope.cos, at.rope.sin))
        half = q.shape[-1] // 2
        for x in (q, kv[:, :, 0]):
            turn(cos, sin, sign, x[..., :half], x[..., half:])
    return q, kv


def rows_backward(shape, numbers, dx):
    """The plain text; sums of halves are made in float32."""
    wide = dx.astype(rows.sums_dtype(dx.dtype), copy=False)
    return plain_rows_backward(shape, numbers, wide).astype(dx.dtype, copy=False)


def cross_entropy_forward(logits, targets, count):
    targets = xp.ascontiguousarray(targets, dtype=np.int64)
    log_sum = rows.log_sum_exp(logits)
    each = xp.arange(targets.size), targets.reshape(-1)
    picked = logits.reshape(-1, logits.shape[-1])[each].reshape(log_sum.shape)
    return (log_sum - picked).sum() / count, (logits, log_sum, targets, count)


def cross_entropy_backward(cache):
    logits, log_sum, targets, count = cache
    return rows.softmax_minus_target(logits, log_sum, targets, 1 / count)


def adamw_update(w, g, m, v, step: int, lr: float, decay: float, c, scale: float = 1.0) -> None:
    correct1, correct2 = 1 - c.beta1 ** (step + 1), sqrt(1 - c.beta2 ** (step + 1))
    # lr m̂ / (√v̂ + ε) with both corrections folded into two constants
    rate, eps = lr * correct2 / correct1, c.eps * correct2
    adamw(g, scale, c.beta1, c.beta2, rate, eps, 1 - lr * decay, w, m, v)
