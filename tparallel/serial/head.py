"""logits = norm(x) W_tokᵀ: a score for every token of the vocabulary.

Shapes:  x (B, T, D); logits (B, T, V); W_tok (V, D), the embedding's own table if tied
Source:  Radford et al. 2018, section 3.1; tied: Press and Wolf 2017
"""

from ..kernels import layernorm_backward_input, layernorm_backward_weight, layernorm_forward
from .dropout import NONE
from .linear import linear_backward_input, linear_backward_weight, linear_forward


def head_forward(x, p, drop=NONE):  # which drops nothing
    n, norm = layernorm_forward(x, p["norm.g"], p["norm.b"])
    logits = linear_forward(n, p["w_tok"].T)  # (B, T, V)
    return logits, (norm, n)


def head_backward_input(dlogits, cache, p):
    norm, n = cache
    dn = linear_backward_input(dlogits, p["w_tok"].T)  # (B, T, D)
    dx, norm = layernorm_backward_input(dn, norm, p["norm.g"])
    return dx, (norm, n, dlogits)


def head_backward_weight(wcache):
    norm, n, dlogits = wcache
    grads = {}
    grads["w_tok"], _ = linear_backward_weight(dlogits, n)  # transposed, as W_tok is
    grads["norm.g"], grads["norm.b"] = layernorm_backward_weight(norm)
    return grads


def head_backward(dlogits, cache, p):
    dx, wcache = head_backward_input(dlogits, cache, p)
    return dx, head_backward_weight(wcache)
