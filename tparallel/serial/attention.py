"""Causal multi-head self-attention: y = softmax(q kᵀ / √K + causal mask) v W_out + b_out.

Shapes:  x, y (B, T, D); W_qkv (D, 3, H, K); b_qkv (3, H, K); W_out (H, K, D); b_out (D)
Source:  Vaswani et al. 2017, section 3.2
"""

from math import sqrt

from ..backend import xp
from .linear import linear_backward_input, linear_backward_weight, linear_forward


def attention_forward(x, p):
    qkv = linear_forward(x, p["w_qkv"], p["b_qkv"])  # (B, T, 3, H, K)
    z, core = heads_forward(qkv)  # (B, T, H, K)
    y = linear_forward(z, p["w_out"], p["b_out"], contract=2)  # (B, T, D)
    return y, (x, core, z)


def attention_backward_input(dy, cache, p):
    x, core, z = cache
    dz = linear_backward_input(dy, p["w_out"], contract=2)  # (B, T, H, K)
    dqkv = heads_backward(dz, core)  # (B, T, 3, H, K)
    dx = linear_backward_input(dqkv, p["w_qkv"])  # (B, T, D)
    return dx, (x, dqkv, z, dy)


def attention_backward_weight(wcache):
    x, dqkv, z, dy = wcache
    grads = {}
    grads["w_out"], grads["b_out"] = linear_backward_weight(z, dy, contract=2)
    grads["w_qkv"], grads["b_qkv"] = linear_backward_weight(x, dqkv)
    return grads


def heads_forward(qkv):
    """z = softmax(q kᵀ / √K + causal mask) v, each head alone.  qkv (B, T, 3, H, K), z (B, T, H, K)

    √K, the head size, not √D: the scores of unit-variance q and k then have unit variance.
    """
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)  # three of (B, H, T, K)
    T, K = q.shape[-2:]
    s = q @ k.swapaxes(-1, -2)  # (B, H, T, T)
    s *= 1 / sqrt(K)
    s[..., ~xp.tri(T, dtype=bool)] = -xp.inf
    s -= s.max(-1, keepdims=True)
    a = xp.exp(s, out=s)  # (B, H, T, T)
    a /= a.sum(-1, keepdims=True)
    z = xp.ascontiguousarray((a @ v).swapaxes(1, 2))  # (B, T, H, K)
    return z, (qkv, a)


def heads_backward(dz, cache):
    """dqkv (B, T, 3, H, K) from dz (B, T, H, K): softmax's Jacobian is a (I − 1 aᵀ), row by row."""
    qkv, a = cache
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)  # three of (B, H, T, K)
    dz = dz.swapaxes(1, 2)  # (B, H, T, K)
    dqkv = xp.empty_like(qkv)
    dq, dk, dv = dqkv.transpose(2, 0, 3, 1, 4)  # views: writing them fills dqkv
    dv[...] = a.swapaxes(-1, -2) @ dz
    ds = dz @ v.swapaxes(-1, -2)  # (B, H, T, T), so far da
    ds -= (ds * a).sum(-1, keepdims=True)
    ds *= a
    ds *= 1 / sqrt(q.shape[-1])
    dk[...] = ds.swapaxes(-1, -2) @ q
    dq[...] = ds @ k
    return dqkv


def attention_backward(dy, cache, p):
    dx, wcache = attention_backward_input(dy, cache, p)
    return dx, attention_backward_weight(wcache)
