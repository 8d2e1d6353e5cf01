"""logits = norm(x) W_tokᵀ: a score for every token of the vocabulary.

Shapes:  x (B, T, D); logits (B, T, V); W_tok (V, D), the embedding's own table if tied
Source:  Radford et al. 2018, section 3.1; tied: Press and Wolf 2017
"""

from ..kernels import norm_backward_input, norm_backward_weight, norm_forward
from .context import ORIGIN
from .linear import linear_backward_input, linear_backward_weight, linear_forward
from .parameters import prefixed, sub


def head_forward(x, p, at=ORIGIN):
    n, norm = norm_forward(x, sub(p, "norm."), at.norm_eps)
    logits = linear_forward(n, p["w_tok"].T)  # (B, T, V)
    return logits, (norm, n)


def head_backward_input(dlogits, cache, p):
    norm, n = cache
    dn = linear_backward_input(dlogits, p["w_tok"].T)  # (B, T, D)
    dx, norm = norm_backward_input(dn, norm, sub(p, "norm."))
    return dx, (norm, n, dlogits)


def head_backward_weight(wcache):
    norm, n, dlogits = wcache
    dw_tok = linear_backward_weight(dlogits, n)  # transposed, as W_tok is
    return {"w_tok": dw_tok, **prefixed("norm.", norm_backward_weight(norm))}


def head_backward(dlogits, cache, p):
    dx, wcache = head_backward_input(dlogits, cache, p)
    return dx, head_backward_weight(wcache)
