"""logits = norm(x) W_tokᵀ, with V cut over tp: every rank scores some of the vocabulary.

Shapes:        x (B, T, D); logits (B, T, V/tp), never gathered; W_tok (V/tp, D)
Communicates:  backward the sum of dn: B T D elements (region.py)
Compare with:  serial/head.py
Source:        Shoeybi et al. 2019, section 3
"""

from ..kernels import layernorm_backward_input, layernorm_backward_weight, layernorm_forward
from ..serial.dropout import NONE
from ..serial.linear import linear_backward_input, linear_backward_weight, linear_forward


def head_forward(x, p, tp, drop=NONE):  # which drops nothing
    n, norm = layernorm_forward(x, p["norm.g"], p["norm.b"])
    n = tp.enter(n, what="head.n")  # (B, T, D)
    logits = linear_forward(n, p["w_tok"].T)  # (B, T, V/tp)
    return logits, (norm, tp.keep(n))


def head_backward_input(dlogits, cache, p, tp):
    norm, n = cache
    n = tp.again(n, what="head.n again")
    dn = linear_backward_input(dlogits, p["w_tok"].T)  # (B, T, D) partial over tp
    dn = tp.enter_backward(dn, what="head.dn")  # (B, T, D), pending
    dx, norm = layernorm_backward_input(dn.wait(), norm, p["norm.g"])
    return dx, (norm, n, dlogits)


def head_backward_weight(wcache):
    norm, n, dlogits = wcache
    grads = {}
    grads["w_tok"], _ = linear_backward_weight(dlogits, n.wait())  # transposed, as W_tok is
    grads["norm.g"], grads["norm.b"] = layernorm_backward_weight(norm)
    return grads


def head_backward(dlogits, cache, p, tp):
    """Both halves, so that the sum of dn hides behind the gradient of the table."""
    norm, n = cache
    n = tp.again(n, what="head.n again")
    dn = linear_backward_input(dlogits, p["w_tok"].T)  # (B, T, D) partial over tp
    dn = tp.enter_backward(dn, what="head.dn")
    grads = {}
    grads["w_tok"], _ = linear_backward_weight(dlogits, n.wait())
    dx, norm = layernorm_backward_input(dn.wait(), norm, p["norm.g"])
    grads["norm.g"], grads["norm.b"] = layernorm_backward_weight(norm)
    return dx, grads
