"""The plain text of ``serial/``, made fast for a GPU: same names, arguments and results.

A GPU's elementwise work is limited by memory, so that the kernels here are passes joined with
their neighbours: short formulas for CuPy to compile, no hand-written CUDA around them.  Attention
goes through the queries in blocks and never has a T × T array for longer than a block: products
are cuBLAS's, batched over heads; backward makes the probabilities again from the rows' log-sums
(Dao et al. 2022, section 3.1), unless T is short.  What is not here is the plain text.

Rehearsed on the tests' stand-in for CuPy, which compiles these formulas for a CPU; not yet run on
a device.
"""

from math import sqrt
from typing import NamedTuple

from ..backend import xp
from ..serial import heads as plain_heads
from ..serial.activation import A, C
from ..serial.dropout import NONE
from ..serial.heads import grouped
from ..serial.linear import bias_backward
from ..serial.loss import every_row
from .plain import (
    activation_backward,
    add_rows,
    cross_entropy_backward,
    rope_backward,
    rope_forward,
)

__all__ = [
    "activation_backward",
    "add_rows",
    "cross_entropy_backward",
    "rope_backward",
    "rope_forward",
]
BLOCK = 256  # rows of scores at a time
KEEP = 512  # longest T whose probabilities are kept for backward

row_sum_of_squares = xp.ReductionKernel(
    "T x, T mean", "T y", "(x - mean) * (x - mean)", "a + b", "y = a", "0", "sum_of_squares"
)
sum_of_products = xp.ReductionKernel(
    "T x, T y", "T z", "x * y", "a + b", "z = a", "0", "sum_of_products"
)
sum_of_triples = xp.ReductionKernel(
    "T x, T y, T z", "T w", "x * y * z", "a + b", "w = a", "0", "sum_of_triples"
)
normalise = xp.ElementwiseKernel(
    "T x, T mean, T rstd, T g, T b",
    "T y, T xhat",
    "xhat = (x - mean) * rstd; y = xhat * g + b",
    "normalise",
)
normalise_backward = xp.ElementwiseKernel(
    "T dy, T g, T xhat, T rstd, T mean, T along",
    "T dx",
    "dx = (dy * g - mean - xhat * along) * rstd",
    "normalise_backward",
)
GELU = f"""
    const T x = h + b, square = x * x;
    const T s = T(1) / (T(1) + exp(-x * (T({2 * C!r}) + T({2 * C * A!r}) * square)));
    a = x * s;
    slope = s + a * (T(1) - s) * (T({2 * C!r}) + T({6 * C * A!r}) * square)
"""  # (1 + tanh u) / 2 = 1 / (1 + e^-2u)
gelu = xp.ElementwiseKernel("T h, T b", "T a, T slope", GELU, "gelu")
swiglu = xp.ElementwiseKernel(
    "T gate, T up",
    "T a, T dgate, T dup",
    """
    const T s = T(1) / (T(1) + exp(-gate));
    const T silu = gate * s;
    a = silu * up;
    dgate = up * (s + silu * (T(1) - s));
    dup = silu
    """,
    "swiglu",
)
exp_minus = xp.ElementwiseKernel("T x, T top", "T y", "y = exp(x - top)", "exp_minus")
softmax_backward = xp.ElementwiseKernel(
    "T p, T along, T scale", "T ds", "ds = p * (ds - along) * scale", "softmax_backward"
)
adamw = xp.ElementwiseKernel(
    "T g, T scale, T beta1, T beta2, T rate, T eps, T keep",
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
    mean = x.mean(-1, keepdims=True) if "b" in p else xp.zeros((*x.shape[:-1], 1), x.dtype)
    rstd = 1 / xp.sqrt(row_sum_of_squares(x, mean, axis=-1, keepdims=True) / x.shape[-1] + eps)
    y, xhat = normalise(x, mean, rstd, p["g"], p.get("b", 0.0))
    return y, (xhat, rstd)


def norm_backward_input(dy, cache, p):
    xhat, rstd = cache
    g, D = p["g"], dy.shape[-1]
    along = sum_of_triples(dy, g, xhat, axis=-1, keepdims=True) / D
    mean = sum_of_products(dy, g, axis=-1, keepdims=True) / D if "b" in p else 0.0
    return normalise_backward(dy, g, xhat, rstd, mean, along), (dy, xhat, [*p])


def norm_backward_weight(wcache):
    dy, xhat, names = wcache
    return {"g": sum_of_products(dy, xhat, axis=(0, 1)), **bias_backward(names, b=dy)}


def activation_forward(h, b=None):
    if h.ndim < 4:
        return gelu(h, 0.0 if b is None else b)
    h = h if b is None else h + b
    a, slope = xp.empty((*h.shape[:2], h.shape[-1]), h.dtype), xp.empty(h.shape, h.dtype)
    swiglu(h[:, :, 0], h[:, :, 1], a, slope[:, :, 0], slope[:, :, 1])
    return a, slope


def cross_entropy_forward(logits, targets, count):
    top = logits.max(-1, keepdims=True)
    e = exp_minus(logits, top)
    total = e.sum(-1, keepdims=True)
    picked = logits.reshape(-1, logits.shape[-1])[every_row(targets)].reshape(top.shape)
    loss = (xp.log(total) + top - picked).sum() / count
    return loss, (e, total, targets, count)


def adamw_update(w, g, m, v, step: int, lr: float, decay: float, c, scale: float = 1.0) -> None:
    correct1, correct2 = 1 - c.beta1 ** (step + 1), sqrt(1 - c.beta2 ** (step + 1))
    # lr m̂ / (√v̂ + ε) with both corrections folded into two constants
    rate, eps = lr * correct2 / correct1, c.eps * correct2
    adamw(g, scale, c.beta1, c.beta2, rate, eps, 1 - lr * decay, w, m, v)


class Scores(NamedTuple):
    """What attention keeps of its scores: the log of each row's sum of exponentials
    (B, Hkv, R, T, 1), and the probabilities of every block (None: made again in backward)."""

    log_sum: object
    kept: list | None  # of (B, Hkv, R, j − i, j)


def heads_forward(q, kv, drop=NONE, start=None):
    if drop.rate or q.shape[1] < kv.shape[1]:
        return plain_heads.heads_forward(q, kv, drop, start)
    z, scores = _attend(q, kv, with_z=True)
    return z, (q, kv, scores, drop)


def scores_again(q, kv, drop=NONE):
    """What heads_backward needs, from q and kv alone."""
    return plain_heads.probabilities(q, kv) if drop.rate else _attend(q, kv, with_z=False)[1]


def kept_scores(T: int, dropout: float = 0.0) -> int:
    """Numbers that attention keeps for one head between forward and backward."""
    if dropout:
        return T * T  # then the plain text does it
    return T + (sum((j - i) * j for i, j in _bounds(T)) if T <= KEEP else 0)


def heads_backward(dz, cache):
    q, kv, scores, drop = cache
    if drop.rate or q.shape[1] < kv.shape[1]:
        return plain_heads.heads_backward(dz, cache)
    dq, dkv = xp.empty_like(q), xp.zeros_like(kv)
    grad_q, grad_k, grad_v = grouped(dq, dkv)  # views: writing them fills the two arrays
    dz, k, v = grouped(dz, kv)
    q, _, _ = grouped(q, kv)
    scale = 1 / sqrt(q.shape[-1])
    for n, (i, j) in enumerate(_bounds(q.shape[-2])):
        qi, dzi, kj, vj = q[..., i:j, :], dz[..., i:j, :], k[..., :j, :], v[..., :j, :]
        p = scores.kept[n] if scores.kept else _masked_scores(qi, kj, i)
        if not scores.kept:
            exp_minus(p, scores.log_sum[..., i:j, :], p)
        ds = dzi @ vj.swapaxes(-1, -2)  # so far dp
        softmax_backward(p, sum_of_products(ds, p, axis=-1, keepdims=True), scale, ds)
        grad_q[..., i:j, :] = ds @ kj
        grad_k[..., :j, :] += (ds.swapaxes(-1, -2) @ qi).sum(2, keepdims=True)
        grad_v[..., :j, :] += (p.swapaxes(-1, -2) @ dzi).sum(2, keepdims=True)
    return dq, dkv


def _attend(q, kv, with_z: bool):
    """z (or None) and the scores, a block of queries after the other."""
    z, T = xp.empty_like(q) if with_z else None, q.shape[1]
    qs, k, v = grouped(q, kv)
    log_sum, kept = xp.empty((*qs.shape[:-1], 1), q.dtype), []
    for i, j in _bounds(T):
        p = _masked_scores(qs[..., i:j, :], k[..., :j, :], i)
        top = p.max(-1, keepdims=True)
        exp_minus(p, top, p)
        total = p.sum(-1, keepdims=True)
        log_sum[..., i:j, :] = xp.log(total) + top
        if T <= KEEP:
            p /= total
            kept.append(p)
        if z is not None:
            block = p @ v[..., :j, :]  # (B, Hkv, R, j − i, K)
            grouped(z, kv)[0][..., i:j, :] = block if T <= KEEP else block / total
    return z, Scores(log_sum, kept if T <= KEEP else None)


def _masked_scores(qi, kj, i: int):
    """Scaled scores of queries i ... and all keys up to the last of them, −∞ above the diagonal."""
    s = (qi * (1 / sqrt(qi.shape[-1]))) @ kj.swapaxes(-1, -2)  # (B, Hkv, R, j − i, j)
    above = ~xp.tri(qi.shape[-2], dtype=bool)
    s[..., i:][..., above] = -xp.inf
    return s


def _bounds(T: int) -> list[tuple[int, int]]:
    return [(i, min(i + BLOCK, T)) for i in range(0, T, BLOCK)]
