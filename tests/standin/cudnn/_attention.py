"""Attention as the fused kernels compute it: halves in, float32 inside, P and dS rounded."""

import numpy as np


def forward(scale, is_causal, q, k, v, o, stats):
    scores = _scores(scale, is_causal, q, k)
    top = scores.max(-1, keepdims=True)
    stats[...] = np.log(np.exp(scores - top).sum(-1, keepdims=True)) + top
    o[...] = _half(np.exp(scores - stats), q) @ _shared(v, q)


def backward(scale, is_causal, q, k, v, o, dO, stats, dQ, dK, dV):
    p = np.exp(_scores(scale, is_causal, q, k) - stats)
    wide = [x.astype(np.float32) for x in (q, o, dO)]
    along = (wide[2] * wide[1]).sum(-1, keepdims=True)
    ds = _half(p * (wide[2] @ _shared(v, q).swapaxes(2, 3) - along), q)
    dQ[...] = scale * (ds @ _shared(k, q))
    dK[...] = _summed(scale * (ds.swapaxes(2, 3) @ wide[0]), k)
    dV[...] = _summed(_half(p, q).swapaxes(2, 3) @ wide[2], v)


def _scores(scale, is_causal, q, k):
    s = scale * (q.astype(np.float32) @ _shared(k, q).swapaxes(2, 3))
    return np.where(np.tri(*s.shape[-2:], dtype=bool), s, -np.inf) if is_causal else s


def _shared(x, q):
    """Key/value heads (B, Hkv, T, K), each repeated for the query heads that it serves."""
    return np.repeat(x.astype(np.float32), q.shape[1] // x.shape[1], axis=1)


def _summed(x, like):
    B, Hkv, T, K = like.shape
    return x.reshape(B, Hkv, -1, T, K).sum(2)


def _half(x, like):
    return x.astype(like.dtype).astype(np.float32)
