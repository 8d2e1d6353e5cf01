"""The plain text of ``serial/``, made fast for a CPU: same names, arguments and results.

Three ideas, each invisible from outside.  A pass over memory that can be joined with its
neighbour is (numba, in ``compiled.py``).  Attention never computes the masked half of the scores:
it goes through the rows in blocks and computes the columns up to the diagonal.  And it
normalises late: the exponentials stay as they are, their inverse row sums scale the (T, K) results,
which are far smaller than the (T, T) scores (Milakov and Gimelshein 2018; Dao et al. 2022, 3.1).
Dropout, and queries that are fewer than their keys, are left to the plain text.
"""

from math import sqrt
from typing import NamedTuple

import numpy as np

from ..serial import heads as plain
from ..serial.dropout import NONE
from ..serial.loss import every_row
from . import compiled

KEEP = 1024  # longest T whose exponentials are kept for backward


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


def add_rows(table, numbers, x):
    compiled.add_rows(table, numbers.reshape(-1), _rows(x))


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


class Scores(NamedTuple):
    """What attention keeps of its scores: row maxima and inverse row sums (B, H, T), and the
    exponentials of every block, about half of T² for each head (None: made again in backward)."""

    top: np.ndarray
    inverse: np.ndarray
    kept: np.ndarray | None  # (B, numbers)


def heads_forward(q, kv, drop=NONE, start=None):
    if drop.rate or q.shape[1] < kv.shape[1]:
        return plain.heads_forward(q, kv, drop, start)
    z, scores, room = (
        np.empty(q.shape, q.dtype),
        _empty_scores(q, keep=q.shape[1] <= KEEP),
        _room(q),
    )
    for b in range(len(q)):
        _, _, v = _heads(q[b], kv[b])
        out, _, _ = _heads(z[b], kv[b])
        for i, j, e in _blocks(scores, room, b, q):
            _exponentials(q[b], kv[b], scores, b, i, j, e)
            np.matmul(_grouped(e, v), v[..., :j, :], out=out[..., i:j, :])
        z[b] *= scores.inverse[b].T[..., None]
    return z, (q, kv, scores, drop)


def heads_backward(dz, cache):
    q, kv, scores, drop = cache
    if drop.rate:
        return plain.heads_backward(dz, cache)
    dq, dkv = np.empty(q.shape, q.dtype), np.zeros(kv.shape, kv.dtype)
    room, ds_room, scale = _room(q), _room(q), _scale(q)
    for b in range(len(q)):
        qb, k, v = _heads(q[b], kv[b])
        dqb, dk, dv = _heads(dq[b], dkv[b])
        dzb, _, _ = _heads(dz[b] * scores.inverse[b].T[..., None], kv[b])
        for i, j, e in _blocks(scores, room, b, q):
            if scores.kept is None:
                _exponentials(q[b], kv[b], scores, b, i, j, e, again=True)
            ds = ds_room[: e.size].reshape(e.shape)
            ds4, e4 = _grouped(ds, v), _grouped(e, v)
            np.matmul(dzb[..., i:j, :], v[..., :j, :].swapaxes(-1, -2), out=ds4)
            compiled.softmax_block_backward(ds, e, scores.inverse[b], i, scale)
            np.matmul(ds4, k[..., :j, :], out=dqb[..., i:j, :])
            dk[..., :j, :] += (ds4.swapaxes(-1, -2) @ qb[..., i:j, :]).sum(1, keepdims=True)
            dv[..., :j, :] += (e4.swapaxes(-1, -2) @ dzb[..., i:j, :]).sum(1, keepdims=True)
    return dq, dkv


def scores_again(q, kv, drop=NONE):
    """What heads_backward needs, from q and kv alone."""
    if drop.rate:
        return plain.probabilities(q, kv)
    scores = _empty_scores(q, keep=True)
    for b in range(len(q)):
        for i, j, e in _blocks(scores, None, b, q):
            _exponentials(q[b], kv[b], scores, b, i, j, e)
    return scores


def kept_scores(T: int, dropout: float = 0.0) -> int:
    """Numbers that attention keeps for one head between forward and backward."""
    if dropout:
        return T * T  # then the plain text does it
    return 2 * T + (_rectangles(T) if T <= KEEP else 0)


def _exponentials(q, kv, scores, b, i, j, e, again: bool = False) -> None:
    """e (H, j − i, j) ← the exponentials of rows i to j of sequence b; ``again``: their maxima
    are known."""
    queries, k, _ = _heads(q, kv)
    np.matmul(queries[..., i:j, :], k[..., :j, :].swapaxes(-1, -2), out=_grouped(e, k))
    if not again:
        compiled.row_maxima(e, scores.top[b], i)
    compiled.exponentials(e, scores.top[b], scores.inverse[b], i, _scale(q))


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


def _grouped(e, v):
    """(H, rows, columns) as (Hkv, R, rows, columns)."""
    return e.reshape(len(v), -1, *e.shape[1:])


def adamw_update(w, g, m, v, step: int, lr: float, decay: float, c, scale: float = 1.0) -> None:
    T = w.dtype.type
    correct1, correct2 = 1 - c.beta1 ** (step + 1), sqrt(1 - c.beta2 ** (step + 1))
    # lr m̂ / (√v̂ + ε) with both corrections folded into two constants
    rate, eps = T(lr * correct2 / correct1), T(c.eps * correct2)
    flat = [a.reshape(-1) for a in (w, g, m, v)]
    compiled.adamw(*flat, T(scale), T(c.beta1), T(c.beta2), rate, eps, T(1 - lr * decay))


def _rows(x):
    return x.reshape(-1, x.shape[-1])
