"""Attention of whole sequences in blocks of rows, for NumPy arrays.

It never computes the masked half of the scores: it goes through the rows in blocks and computes the
columns up to the diagonal.  And it normalises late: the exponentials stay as they are, their
inverse row sums scale the (T, K) results, which are far smaller than the (T, T) scores.
Dropout, and queries that are fewer than their keys, are left to the plain text.

Source:  Milakov and Gimelshein 2018; Dao et al. 2022, section 3.1
"""

from math import sqrt
from typing import Any, NamedTuple

import numpy as np

from ..serial import heads as plain
from ..serial.dropout import NONE

KEEP = 1024  # longest T whose exponentials are kept for backward


class Scores(NamedTuple):
    """What attention keeps of its scores: row maxima and inverse row sums (B, H, T), and the
    exponentials of every block, about half of T² for each head (None: made again in backward)."""

    top: np.ndarray
    inverse: np.ndarray
    kept: np.ndarray | None  # (B, numbers)


class BlockAttention:
    """Forward and backward of ``serial/heads.py``.

    ``passes`` has the passes over one block of scores, in which versions of the kernels differ:
    ``row_maxima``, ``exponentials`` and ``softmax_block_backward`` (``compiled.py``).

    Keys and values of a sequence are copied, so that each head's lie for themselves, and transposed
    where they are multiplied as their transpose: small products then take two thirds of the time.
    """

    def __init__(self, passes: Any):
        self.passes = passes

    def forward(self, q, kv, drop=NONE, start=None):
        if drop.rate or q.shape[1] < kv.shape[1]:
            return plain.heads_forward(q, kv, drop, start)
        z, room = np.empty(q.shape, q.dtype), _room(q)
        scores = _empty_scores(q, keep=q.shape[1] <= KEEP)
        for b in range(len(q)):
            qs, k, v = _heads(q[b], kv[b])
            k_t, v = _transposed(k), np.ascontiguousarray(v)
            out, _, _ = _heads(z[b], kv[b])
            for i, j, e in _blocks(scores, room, b, q):
                self._exponentials(qs, k_t, scores, b, i, j, e)
                np.matmul(_grouped(e, v), v[..., :j, :], out=out[..., i:j, :])
            z[b] *= scores.inverse[b].T[..., None]
        return z, (q, kv, scores, drop)

    def backward(self, dz, cache):
        q, kv, scores, drop = cache
        if drop.rate:
            return plain.heads_backward(dz, cache)
        dq, dkv = np.empty(q.shape, q.dtype), np.empty(kv.shape, kv.dtype)
        room, ds_room = _room(q), _room(q)
        for b in range(len(q)):
            qs, k, v = _heads(q[b], kv[b])
            k_t = _transposed(k) if scores.kept is None else None
            v_t, k = _transposed(v), np.ascontiguousarray(k)
            dzs, _, _ = _heads(dz[b] * scores.inverse[b].T[..., None], kv[b])
            dqs, dk, dv = _heads(dq[b], dkv[b])
            to_k, to_v = np.zeros_like(k), np.zeros_like(k)
            for i, j, e in _blocks(scores, room, b, q):
                if scores.kept is None:
                    self._exponentials(qs, k_t, scores, b, i, j, e, again=True)
                ds = ds_room[: e.size].reshape(e.shape)
                np.matmul(dzs[..., i:j, :], v_t[..., :j], out=_grouped(ds, k))
                self.passes.softmax_block_backward(ds, e, scores.inverse[b], i)
                np.matmul(_grouped(ds, k), k[..., :j, :], out=dqs[..., i:j, :])
                to_k[..., :j, :] += _over_queries(ds, qs[..., i:j, :])
                to_v[..., :j, :] += _over_queries(e, dzs[..., i:j, :])
            dq[b] *= _scale(q)
            np.multiply(to_k, _scale(q), out=dk)
            dv[...] = to_v
        return dq, dkv

    def again(self, q, kv, drop=NONE):
        """What heads_backward needs, from q and kv alone."""
        if drop.rate:
            return plain.probabilities(q, kv)
        scores = _empty_scores(q, keep=True)
        for b in range(len(q)):
            qs, k, _ = _heads(q[b], kv[b])
            k_t = _transposed(k)
            for i, j, e in _blocks(scores, None, b, q):
                self._exponentials(qs, k_t, scores, b, i, j, e)
        return scores

    def _exponentials(self, q, k_t, scores, b, i, j, e, again: bool = False) -> None:
        """e (H, j − i, j) ← the exponentials of rows i to j of sequence b; ``again``: their maxima
        are known."""
        np.matmul(q[..., i:j, :], k_t[..., :j], out=_grouped(e, k_t))
        scale = _scale(q)
        if not again:
            self.passes.row_maxima(e, scores.top[b], i, scale)
        self.passes.exponentials(e, scores.top[b], scores.inverse[b], i, scale)


def kept_scores(T: int, dropout: float = 0.0) -> int:
    """Numbers that attention keeps for one head between forward and backward."""
    if dropout:
        return T * T  # then the plain text does it
    return 2 * T + (_rectangles(T) if T <= KEEP else 0)


def _blocks(scores, room, b: int, q):
    """(i, j, room for the exponentials (H, j − i, j)) of rows i to j and columns 0 to j."""
    T, H = q.shape[1], q.shape[2]
    at = 0
    for i, j in _bounds(T):
        size = H * (j - i) * j
        flat = room[:size] if scores.kept is None else scores.kept[b, at : at + size]
        yield i, j, flat.reshape(H, j - i, j)
        at += size


def _empty_scores(q, keep: bool) -> Scores:
    B, T, H, _ = q.shape
    kept = np.empty((B, H * _rectangles(T)), q.dtype) if keep else None
    return Scores(np.empty((B, H, T), q.dtype), np.empty((B, H, T), q.dtype), kept)


def _room(q):
    """Space for the widest block."""
    return np.empty(q.shape[2] * block(q.shape[1]) * q.shape[1], q.dtype)


def _bounds(T: int) -> list[tuple[int, int]]:
    return [(i, min(i + block(T), T)) for i in range(0, T, block(T))]


def block(T: int) -> int:
    """Rows of scores at a time: more of them make larger products, and waste more beyond the
    diagonal.  Measured best: 64 at T of 128 and 256, 128 at T = 1024."""
    return 64 if T < 512 else 128


def _rectangles(T: int) -> int:
    return sum((j - i) * j for i, j in _bounds(T))


def _scale(q):
    return q.dtype.type(1 / sqrt(q.shape[-1]))


def _heads(q, kv):
    """Views of one sequence by group: q (Hkv, R, T, K); k, v (Hkv, 1, T, K)."""
    k, v = kv.transpose(1, 2, 0, 3)[:, :, None]
    T, _, K = q.shape
    return q.reshape(T, len(k), -1, K).transpose(1, 2, 0, 3), k, v


def _transposed(x):
    """A copy (..., K, T) of x (..., T, K), 16 positions at a time: a line of the cache is written
    at once."""
    out = np.empty((*x.shape[:-2], x.shape[-1], x.shape[-2]), x.dtype)
    for i in range(0, x.shape[-2], 16):
        out[..., i : i + 16] = x[..., i : i + 16, :].swapaxes(-1, -2)
    return out


def _grouped(e, k):
    """(H, rows, columns) as (Hkv, R, rows, columns)."""
    return e.reshape(len(k), -1, *e.shape[1:])


def _over_queries(e, x):
    """The sum of eᵀ x over the queries of a group, (Hkv, 1, columns, K): of blocks (H, rows,
    columns) and (Hkv, R, rows, K)."""
    groups = len(x), 1, x.shape[1] * x.shape[2]
    return e.reshape(*groups, -1).swapaxes(-1, -2) @ x.reshape(*groups, -1)
