"""logits = norm(x) W_tokᵀ, with V cut over tp: every rank scores some of the vocabulary.

Shapes:        x (B, T, D); logits (B, T, V/tp), never gathered; W_tok (V/tp, D)
Communicates:  backward the sum of dn: B T D elements (region.py)
Compare with:  serial/head.py
Source:        Shoeybi et al. 2019, section 3
"""

from ..kernels import norm_backward_input, norm_backward_weight, norm_forward
from ..serial.context import ORIGIN
from ..serial.linear import linear_backward_input, linear_backward_weight, linear_forward
from ..serial.parameters import prefixed, sub


def head_forward(x, p, tp, at=ORIGIN):
    n, norm = norm_forward(x, sub(p, "norm."), at.norm_eps)
    n = tp.enter(n, what="head.n")  # (B, T, D)
    logits = linear_forward(n, p["w_tok"].T)  # (B, T, V/tp)
    return logits, (norm, tp.keep(n))


def head_backward_input(dlogits, cache, p, tp):
    norm, n = cache
    n = tp.again(n, what="head.n again")
    dn = linear_backward_input(dlogits, p["w_tok"].T)  # (B, T, D) partial over tp
    dn = tp.enter_backward(dn, what="head.dn")  # (B, T, D), pending
    dx, norm = norm_backward_input(dn.wait(), norm, sub(p, "norm."))
    return dx, (norm, n, dlogits)


def head_backward_weight(wcache):
    norm, n, dlogits = wcache
    dw_tok = linear_backward_weight(dlogits, n.wait())  # transposed, as W_tok is
    return {"w_tok": dw_tok, **prefixed("norm.", norm_backward_weight(norm))}


def head_backward(dlogits, cache, p, tp):
    """Both halves, so that the sum of dn hides behind the gradient of the table."""
    norm, n = cache
    n = tp.again(n, what="head.n again")
    dn = linear_backward_input(dlogits, p["w_tok"].T)  # (B, T, D) partial over tp
    dn = tp.enter_backward(dn, what="head.dn")
    dw_tok = linear_backward_weight(dlogits, n.wait())
    dx, norm = norm_backward_input(dn.wait(), norm, sub(p, "norm."))
    return dx, {"w_tok": dw_tok, **prefixed("norm.", norm_backward_weight(norm))}
