"""Attention for a GPU: by cuDNN where it can (flash.py), else a block of queries after the other.

There is no T × T array for longer than a block: products are cuBLAS's, batched over heads; backward
makes the probabilities again from the rows' log-sums, unless T is short.  Scores and their sums are
float32 where q, k and v are bfloat16, probabilities are what q is.

Source: Dao et al. 2022, section 3.1
"""

from math import sqrt
from typing import NamedTuple

from ..backend import xp
from ..serial import heads as plain_heads
from ..serial.dropout import NONE
from ..serial.heads import grouped
from . import flash
from .batched import product
from .rows import log_sum_exp, sums_dtype

BLOCK = 512  # rows of scores at a time
KEEP = 512  # longest T whose probabilities are kept for backward

scale_and_mask = xp.ElementwiseKernel(
    "int64 key, int64 query, W scale, W never", "W s",
    "s = key <= query ? s * scale : never", "scale_and_mask",
)  # fmt: skip
exp_minus = xp.ElementwiseKernel("W x, W log_sum", "T y", "y = exp(x - log_sum)", "exp_minus")
softmax_backward = xp.ElementwiseKernel(
    "T p, W dp, W along, W scale", "T ds", "ds = p * (dp - along) * scale", "softmax_backward"
)
sum_of_products = {
    wide: xp.ReductionKernel(
        "T x, W y", f"{wide} z", "x * y", "a + b", "z = a", "0", "row_sum_of_products"
    )
    for wide in ("float32", "float64")
}


class Scores(NamedTuple):
    """What attention keeps of its scores: the log of each row's sum of exponentials
    (B, Hkv, R, T, 1), and the probabilities of every block (None: made again in backward)."""

    log_sum: object
    kept: list | None  # of (B, Hkv, R, j − i, j)


def heads_forward(q, kv, drop=NONE, start=None):
    if _is_plain(q, kv, drop):
        z, (_, _, a, _) = plain_heads.heads_forward(_wide(q), _wide(kv), drop, start)
        return z.astype(q.dtype, copy=False), (q, kv, a, drop)
    if flash.takes(q.itemsize, q.shape[1], q.shape[-1]):
        scores = flash.forward(q, kv)
        return scores.z, (q, kv, scores, drop)
    z, scores = _attend(q, kv, with_z=True)
    return z, (q, kv, scores, drop)


def heads_backward(dz, cache):
    q, kv, scores, drop = cache
    if isinstance(scores, flash.Flash):
        return flash.backward(dz, q, kv, scores)
    if not _is_plain(q, kv, drop):
        return _attend_backward(dz, q, kv, scores)
    wide = _wide(dz), (_wide(q), _wide(kv), scores, drop)
    return tuple(x.astype(q.dtype, copy=False) for x in plain_heads.heads_backward(*wide))


def scores_again(q, kv, drop=NONE):
    """What heads_backward needs, from q and kv alone."""
    if drop.rate:
        return plain_heads.probabilities(_wide(q), _wide(kv))
    if flash.takes(q.itemsize, q.shape[1], q.shape[-1]):
        return flash.forward(q, kv)
    return _attend(q, kv, with_z=False)[1]


def kept_scores(T: int, dropout: float = 0.0, itemsize: int = 4, K: int = 0) -> int:
    """Numbers that attention keeps for one head of K between forward and backward, of ``itemsize``
    bytes: a float32 counts as two bfloat16."""
    wide = max(1, 4 // itemsize)
    if dropout:
        return wide * T * T  # then the plain text does it
    if T > KEEP or flash.takes(itemsize, T, K):
        return wide * T
    return wide * T + sum((j - i) * j for i, j in _bounds(T))


def _is_plain(q, kv, drop) -> bool:
    """Dropout and generation are left to the plain text."""
    return bool(drop.rate) or q.shape[1] < kv.shape[1]


def _wide(x):
    return x.astype(sums_dtype(x.dtype), copy=False)


def _attend(q, kv, with_z: bool):
    """z (or None) and the scores."""
    z, T = xp.empty_like(q) if with_z else None, q.shape[1]
    qs, k, v = grouped(q, kv)
    log_sum, kept = xp.empty((*qs.shape[:-1], 1), sums_dtype(q.dtype)), []
    for i, j in _bounds(T):
        s = _masked_scores(qs[..., i:j, :], k[..., :j, :], i)
        log_sum[..., i:j, :] = log_sum_exp(s)
        p = _probabilities(s, log_sum[..., i:j, :], q.dtype)
        if T <= KEEP:
            kept.append(p)
        if z is not None:
            grouped(z, kv)[0][..., i:j, :] = product(p, v[..., :j, :])  # (B, Hkv, R, j − i, K)
    return z, Scores(log_sum, kept if T <= KEEP else None)


def _attend_backward(dz, q, kv, scores):
    dq, dkv = xp.empty_like(q), xp.zeros(kv.shape, sums_dtype(kv.dtype))
    grad_q, grad_k, grad_v = grouped(dq, dkv)  # views: writing them fills the two arrays
    dz, k, v = grouped(dz, kv)
    q, _, _ = grouped(q, kv)
    scale = 1 / sqrt(q.shape[-1])
    for n, (i, j) in enumerate(_bounds(q.shape[-2])):
        qi, dzi, kj, vj = q[..., i:j, :], dz[..., i:j, :], k[..., :j, :], v[..., :j, :]
        p = scores.kept[n] if scores.kept else None
        if p is None:
            p = _probabilities(_masked_scores(qi, kj, i), scores.log_sum[..., i:j, :], q.dtype)
        dp = product(dzi, vj.swapaxes(-1, -2))
        along = sum_of_products[dp.dtype.name](p, dp, axis=-1, keepdims=True)
        ds = xp.empty_like(p)
        softmax_backward(p, dp, along, scale, ds)
        grad_q[..., i:j, :] = product(ds, kj)
        grad_k[..., :j, :] += product(ds.swapaxes(-1, -2), qi).sum(2, keepdims=True)
        grad_v[..., :j, :] += product(p.swapaxes(-1, -2), dzi).sum(2, keepdims=True)
    return dq, dkv.astype(kv.dtype, copy=False)


def _masked_scores(qi, kj, i: int):
    """Scaled scores of queries i ... and all keys up to the last of them, −∞ above the diagonal."""
    s = product(qi, kj.swapaxes(-1, -2))  # (B, Hkv, R, j − i, j)
    keys = xp.arange(kj.shape[-2])
    scale_and_mask(keys, keys[i:, None], 1 / sqrt(qi.shape[-1]), -xp.inf, s)
    return s


def _probabilities(s, log_sum, dtype):
    p = xp.empty(s.shape, dtype)
    exp_minus(s, log_sum, p)
    return p


def _bounds(T: int) -> list[tuple[int, int]]:
    return [(i, min(i + BLOCK, T)) for i in range(0, T, BLOCK)]
