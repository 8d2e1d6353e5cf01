"""A pre-norm block: x + attention(norm1(x)), then x + mlp(norm2(x)), both cut over tp.

Shapes:        x, y (B, T, D), the same on every tp rank, which all compute norms and residuals;
               (B, T/tp, D) under sequence parallelism, where each computes those of its tokens
Communicates:  attention's and mlp's sums: two of B T D elements forward, two backward
Compare with:  serial/block.py
Source:        Shoeybi et al. 2019, section 3, figure 4; Korthikanti et al. 2022, figure 5
"""

from ..kernels import norm_backward_input, norm_backward_weight, norm_forward
from ..serial.context import ORIGIN
from ..serial.parameters import prefixed, sub
from .attention import (
    attention_backward,
    attention_backward_input,
    attention_backward_weight,
    attention_forward,
)
from .mlp import mlp_backward, mlp_backward_input, mlp_backward_weight, mlp_forward


def block_forward(x, p, tp, at=ORIGIN):
    n, norm1 = norm_forward(x, sub(p, "norm1."), at.norm_eps)
    y, attn = attention_forward(n, sub(p, "attn."), tp, at)
    x = x + at.drop.hidden(y, "attn.y")  # (B, T, D)
    n, norm2 = norm_forward(x, sub(p, "norm2."), at.norm_eps)
    y, mlp = mlp_forward(n, sub(p, "mlp."), tp)
    y = at.drop.hidden(y, "mlp.y")
    y += x  # (B, T, D)
    return y, (norm1, attn, norm2, mlp, at.drop)


def block_backward_input(dy, cache, p, tp):
    norm1, attn, norm2, mlp, drop = cache
    dn, mlp = mlp_backward_input(drop.hidden(dy, "mlp.y"), mlp, sub(p, "mlp."), tp)
    dx, norm2 = norm_backward_input(dn.wait(), norm2, sub(p, "norm2."))
    dx += dy  # the residual's own gradient: without it the block forgets what lies below
    dn, attn = attention_backward_input(drop.hidden(dx, "attn.y"), attn, sub(p, "attn."), tp)
    dy = dx
    dx, norm1 = norm_backward_input(dn.wait(), norm1, sub(p, "norm1."))
    dx += dy
    return dx, (norm1, attn, norm2, mlp)


def block_backward_weight(wcache):
    norm1, attn, norm2, mlp = wcache
    grads = prefixed("mlp.", mlp_backward_weight(mlp))
    grads |= prefixed("norm2.", norm_backward_weight(norm2))
    grads |= prefixed("attn.", attention_backward_weight(attn))
    grads |= prefixed("norm1.", norm_backward_weight(norm1))
    return grads


def block_backward(dy, cache, p, tp):
    """Both halves of each part in turn: its weight gradients hide its sum of dx over tp."""
    norm1, attn, norm2, mlp, drop = cache
    dn, dmlp = mlp_backward(drop.hidden(dy, "mlp.y"), mlp, sub(p, "mlp."), tp)
    dx, norm2 = norm_backward_input(dn, norm2, sub(p, "norm2."))
    dx += dy  # again the residuals' own gradients, here
    dn, dattn = attention_backward(drop.hidden(dx, "attn.y"), attn, sub(p, "attn."), tp)
    dy = dx
    dx, norm1 = norm_backward_input(dn, norm1, sub(p, "norm1."))
    dx += dy  # and here
    grads = prefixed("mlp.", dmlp) | prefixed("attn.", dattn)
    grads |= prefixed("norm2.", norm_backward_weight(norm2))
    grads |= prefixed("norm1.", norm_backward_weight(norm1))
    return dx, grads
