"""Loops over memory, compiled with numba: each is one pass where NumPy needs several.

These are the inner loops of ``fast.py``, and those of its attention.  They do not call each other:
a function that is whole gives the same bits whether it was compiled now or loaded from the disk.
float32 has its own exponential, a polynomial that becomes vector instructions; float64 uses the
library's.
"""

import math
from typing import Any

import numpy as np
from numba import float32, int32, types
from numba.extending import intrinsic, overload

from ..serial.activation import A, C
from .cache import kernel

LOWEST = -80.0  # e^-80 is a normal float32; below 1e-38 every product that meets it crawls


def exp(x):
    """e^x in the type of x, for |x| < 87."""
    return math.exp(x)


def _bits_as_float32(typingctx, x):
    def build(context, builder, signature, args):
        from llvmlite import ir

        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), build


bits_as_float32: Any = intrinsic(_bits_as_float32)


@overload(exp, inline="always")
def _exp(x):
    if x != float32:
        return lambda x: math.exp(x)

    def exp32(x):
        # e^x = 2^n 2^r with r in [-1/2, 1/2]: n becomes the exponent's bits, 2^r a polynomial
        t = x * np.float32(1.4426950408889634)
        t = np.float32(-126.0) if t < np.float32(-126.0) else t  # in this order NaN stays NaN
        t = np.float32(126.0) if t > np.float32(126.0) else t
        n = np.floor(t + np.float32(0.5))
        r = t - n
        p = np.float32(1.5403530e-4)
        p = p * r + np.float32(1.3333558e-3)
        p = p * r + np.float32(9.6181291e-3)
        p = p * r + np.float32(5.5504109e-2)
        p = p * r + np.float32(2.4022651e-1)
        p = p * r + np.float32(6.9314718e-1)
        p = p * r + np.float32(1.0)
        return p * bits_as_float32((int32(n) + int32(127)) << int32(23))

    return exp32


@kernel
def norm_forward(x, g, b, y, xhat, rstd, eps):
    """Without b (None: numba then leaves its lines out) it is RMS norm."""
    rows, D = x.shape
    T = x.dtype.type
    for i in range(rows):
        row, out, hat = x[i], y[i], xhat[i]
        mean = T(0)
        if b is not None:
            for j in range(D):
                mean += row[j]
            mean /= T(D)
        square = T(0)
        for j in range(D):
            c = row[j] - mean
            square += c * c
        r = T(1) / np.sqrt(square / T(D) + eps)
        rstd[i] = r
        for j in range(D):
            h = (row[j] - mean) * r
            hat[j] = h
            o = h * g[j]
            if b is not None:
                o += b[j]
            out[j] = o


@kernel
def norm_backward_input(dy, xhat, rstd, g, dx, centred):
    rows, D = dy.shape
    T = dy.dtype.type
    for i in range(rows):
        d, hat, out = dy[i], xhat[i], dx[i]
        mean, along = T(0), T(0)
        for j in range(D):
            t = d[j] * g[j]
            mean += t
            along += t * hat[j]
        mean, along = mean / T(D) if centred else T(0), along / T(D)
        for j in range(D):
            out[j] = (d[j] * g[j] - mean - hat[j] * along) * rstd[i]


@kernel
def norm_backward_weight(dy, xhat, dg, db):
    rows, D = dy.shape
    for i in range(rows):
        d, hat = dy[i], xhat[i]
        for j in range(D):
            dg[j] += d[j] * hat[j]
            if db is not None:
                db[j] += d[j]


@kernel
def gelu_forward(x, b, y, slope):
    rows, F = x.shape
    T = x.dtype.type
    one, k0, k1, k3 = T(1), T(2 * C), T(2 * C * A), T(6 * C * A)
    for i in range(rows):
        row, out, steep = x[i], y[i], slope[i]
        for j in range(F):
            u = row[j]
            if b is not None:
                u += b[j]
            q = u * u
            s = one / (one + exp(-u * (k0 + k1 * q)))  # (1 + tanh z) / 2 = 1 / (1 + e^-2z)
            o = u * s
            out[j] = o
            steep[j] = s + o * (one - s) * (k0 + k3 * q)


@kernel
def swiglu_forward(h, b, y, slope):
    rows, F = y.shape
    T = y.dtype.type
    one = T(1)
    for i in range(rows):
        gate, up, out, dgate, dup = h[i, 0], h[i, 1], y[i], slope[i, 0], slope[i, 1]
        for j in range(F):
            g, u = gate[j], up[j]
            if b is not None:
                g += b[0, j]
                u += b[1, j]
            s = one / (one + exp(-g))
            silu = g * s
            out[j] = silu * u
            dgate[j] = u * (s + silu * (one - s))
            dup[j] = silu


@kernel
def turn(x, heads, cos, sin, where, sign):
    """The first ``heads`` of each row of x (rows, any, K), by the angles of its position."""
    rows, _, K = x.shape
    half = K // 2
    for i in range(rows):
        c, s = cos[where[i]], sin[where[i]]
        for h in range(heads):
            a, b = x[i, h, :half], x[i, h, half:]
            for j in range(half):
                u, v = a[j], b[j]
                a[j] = u * c[j] - sign * s[j] * v
                b[j] = v * c[j] + sign * s[j] * u


@kernel
def add_rows(table, numbers, x):
    rows, D = x.shape
    for i in range(rows):
        row, new = table[numbers[i]], x[i]
        for j in range(D):
            row[j] += new[j]


@kernel
def row_maxima(s, top, first, scale):
    """``top`` (H, T) ← the maximum of each row of scaled causal scores s (H, rows, columns), which
    are the rows first, first+1, ...  Apart from the exponentials: beside them it is no vector."""
    heads, rows, _ = s.shape
    for h in range(heads):
        for i in range(rows):
            m = s[h, i, 0]
            for j in range(first + i + 1):
                v = s[h, i, j]
                m = v if v > m else m
            top[h, first + i] = m * scale


@kernel
def exponentials(s, top, inverse, first, scale):
    """s ← e^(scale s − top), zero right of the diagonal; ``inverse`` (H, T) ← 1 / row sum."""
    heads, rows, _ = s.shape
    T = s.dtype.type
    for h in range(heads):
        for i in range(rows):
            seen = first + i + 1
            row, m, total = s[h, i, :seen], top[h, seen - 1], T(0)
            for j in range(row.size):
                v = row[j] * scale - m
                v = T(LOWEST) if v < T(LOWEST) else v
                e = exp(v)
                row[j] = e
                total += e
            inverse[h, seen - 1] = T(1) / total
            s[h, i, seen:] = 0


@kernel
def softmax_block_backward(ds, e, inverse, first):
    """ds ← e (ds − inverse Σ_j e ds), row by row, in place."""
    heads, rows, columns = ds.shape
    T = ds.dtype.type
    for h in range(heads):
        for i in range(rows):
            row, p = ds[h, i], e[h, i]
            along = T(0)
            for j in range(columns):
                along += row[j] * p[j]
            along *= inverse[h, first + i]
            for j in range(columns):
                row[j] = (row[j] - along) * p[j]


@kernel
def cross_entropy(logits, top, e, total):
    """e ← e^(logit − top), and its row sums into ``total``."""
    rows, V = e.shape
    T = e.dtype.type
    for i in range(rows):
        row, out, m, s = logits[i], e[i], top[i], T(0)
        for j in range(V):
            v = row[j] - m
            v = T(LOWEST) if v < T(LOWEST) else v
            t = exp(v)
            out[j] = t
            s += t
        total[i] = s


@kernel
def adamw(w, g, m, v, scale, beta1, beta2, rate, eps, keep):
    T = w.dtype.type
    one = T(1)
    for i in range(w.size):
        x = g[i] * scale
        a = beta1 * m[i] + (one - beta1) * x
        b = beta2 * v[i] + (one - beta2) * (x * x)
        m[i], v[i] = a, b
        w[i] = w[i] * keep - rate * a / (np.sqrt(b) + eps)
