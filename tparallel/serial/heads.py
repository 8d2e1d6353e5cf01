"""What one head does: z = dropout(softmax(q kᵀ / √K + causal mask)) v.

Each of the Hkv key/value heads serves a group of R = H/Hkv query heads: query head h reads
key/value head h // R.  Hkv = H is multi-head attention, Hkv = 1 multi-query, others grouped-query.
A head needs no other: this file is tensor parallelism's too, on fewer heads.

Shapes:  q, z (B, T, H, K); kv (B, S, 2, Hkv, K), S = T but in generation
Source:  Vaswani et al. 2017, section 3.2; Ainslie et al. 2023, section 2.2
"""

from math import sqrt

from ..backend import xp
from .dropout import NONE


def heads_forward(q, kv, drop=NONE, start=None):
    """z = dropout(a) v."""
    a = probabilities(q, kv, start)  # (B, Hkv, R, T, S)
    _, _, v = grouped(q, kv)
    z = drop.heads(a, "attn.a") @ v  # (B, Hkv, R, T, K)
    return xp.ascontiguousarray(z.transpose(0, 3, 1, 2, 4)).reshape(q.shape), (q, kv, a, drop)


def heads_backward(dz, cache):
    """dq, dkv from dz (B, T, H, K): softmax's Jacobian is a (I − 1 aᵀ), row by row.  A key/value
    head's gradient is the sum over the R query heads that it serves."""
    q, kv, a, drop = cache
    grad_q, grad_kv = xp.empty_like(q), xp.empty_like(kv)
    dq, dk, dv = grouped(grad_q, grad_kv)  # views: writing them fills the two arrays
    dz, k, v = grouped(dz, kv)
    q, _, _ = grouped(q, kv)
    dv[...] = (drop.heads(a, "attn.a").swapaxes(-1, -2) @ dz).sum(2, keepdims=True)
    ds = drop.heads(dz @ v.swapaxes(-1, -2), "attn.a")  # (B, Hkv, R, T, T), so far da
    ds -= (ds * a).sum(-1, keepdims=True)
    ds *= a
    ds *= 1 / sqrt(q.shape[-1])
    dk[...] = (ds.swapaxes(-1, -2) @ q).sum(2, keepdims=True)
    dq[...] = ds @ k
    return grad_q, grad_kv


def probabilities(q, kv, start=None):
    """a = softmax(q kᵀ / √K + causal mask), (B, Hkv, R, T, S).

    √K, the head size, not √D: the scores of unit-variance q and k then have unit variance.
    """
    q, k, _ = grouped(q, kv)
    (T, K), S = q.shape[-2:], k.shape[-2]
    s = q @ k.swapaxes(-1, -2)  # (B, Hkv, R, T, S)
    s *= 1 / sqrt(K)
    s = xp.where(seen(T, S, start), s, -xp.inf)
    s -= s.max(-1, keepdims=True)
    a = xp.exp(s, out=s)
    a /= a.sum(-1, keepdims=True)
    return a


def seen(T, S, start=None):
    """May a query look at a key?  (1 or B, 1, 1, T, S): key s is at position s; the queries are at
    ``start`` and behind, (B, 1) where rows differ, or, without it, at the last T positions."""
    last = (S - T if start is None else start) + xp.arange(T)  # (T), or (B, T)
    return xp.arange(S) <= last.reshape(-1, 1, 1, T, 1)


def grouped(q, kv):
    """Views by group: q (B, Hkv, R, T, K), and k, v (B, Hkv, 1, S, K), which serve R heads each."""
    k, v = kv.transpose(2, 0, 3, 1, 4)[:, :, :, None]
    B, T, _, K = q.shape
    return q.reshape(B, T, k.shape[1], -1, K).transpose(0, 2, 3, 1, 4), k, v
