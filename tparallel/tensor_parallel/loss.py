"""Cross-entropy with V cut over tp: loss = Σ_tokens (log Σ_v e^logit_v − logit_target) / count.

Three numbers per token cross the wire instead of V logits: the largest score, the sum of
exponentials, and the target's score, which only the rank that holds the target's column knows.

Shapes:        logits, dlogits (B, T, V/tp); targets (B, T) integers; loss a scalar, on every rank
Communicates:  forward all_reduce (max) of B T elements and all_reduce of 2 B T; backward nothing
Compare with:  serial/loss.py
Source:        Shoeybi et al. 2019, section 3
"""

from ..backend import xp
from .embedding import local_tokens


def cross_entropy_forward(logits, targets, count, tp, V):
    top = tp.all_reduce(logits.max(-1, keepdims=True), what="loss.top", op="max")  # (B, T, 1)
    e = xp.exp(logits - top)  # (B, T, V/tp)
    local, mine = local_tokens(targets, tp, V)
    picked = logits.reshape(-1, logits.shape[-1])[every_row(local)].reshape(top.shape)
    sums = xp.stack([e.sum(-1, keepdims=True), picked * mine[..., None]])  # partial over tp
    total, picked = tp.all_reduce(sums, what="loss.sums")  # (B, T, 1) each
    loss = (xp.log(total) + top - picked).sum() / count
    return loss, (e, total, local, mine, count)


def cross_entropy_backward(cache):
    """dlogits = (softmax(logits) − onehot(target)) / count, of this rank's columns."""
    e, total, local, mine, count = cache
    dlogits = e / (total * count)  # (B, T, V/tp)
    here = mine.reshape(-1).astype(e.dtype)  # as bool it would make float32 sums in float64
    dlogits.reshape(-1, e.shape[-1])[every_row(local)] -= here * (1 / count)
    return dlogits


def every_row(targets):
    """Index pairs (row, target) that pick one entry from each row of (B T, V/tp)."""
    return xp.arange(targets.size), targets.reshape(-1)
