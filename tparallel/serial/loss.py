"""Cross-entropy: loss = Σ_tokens (log Σ_v e^logit_v − logit_target) / count.

``count`` is the number of tokens in the whole global batch, not in these arrays.  The losses of
micro-batches and ranks then simply add up, and so does every gradient: sum, never average.

Shapes:  logits, dlogits (B, T, V); targets (B, T) integers; loss a scalar, in nats per token
"""

from ..backend import xp


def cross_entropy_forward(logits, targets, count):
    top = logits.max(-1, keepdims=True)  # (B, T, 1)
    e = xp.exp(logits - top)  # (B, T, V)
    total = e.sum(-1, keepdims=True)  # (B, T, 1)
    picked = logits.reshape(-1, logits.shape[-1])[every_row(targets)].reshape(top.shape)
    loss = (xp.log(total) + top - picked).sum() / count
    return loss, (e, total, targets, count)


def cross_entropy_backward(cache):
    """dlogits = (softmax(logits) − onehot(target)) / count."""
    e, total, targets, count = cache
    dlogits = e / (total * count)  # (B, T, V)
    dlogits.reshape(-1, e.shape[-1])[every_row(targets)] -= 1 / count
    return dlogits


def every_row(targets):
    """Index pairs (row, target) that pick one entry from each row of (B T, V)."""
    return xp.arange(targets.size), targets.reshape(-1)
