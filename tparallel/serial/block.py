"""A pre-norm block: x + attention(norm1(x)), then x + mlp(norm2(x)).

Shapes:  x, y (B, T, D); parameters ``norm1.* attn.* norm2.* mlp.*``
Source:  Radford et al. 2019, section 2.3; dropout: Radford et al. 2018, section 4.1
"""

from ..kernels import norm_backward_input, norm_backward_weight, norm_forward
from .attention import (
    attention_backward,
    attention_backward_input,
    attention_backward_weight,
    attention_forward,
)
from .context import ORIGIN
from .mlp import mlp_backward, mlp_backward_input, mlp_backward_weight, mlp_forward
from .parameters import prefixed, sub


def block_forward(x, p, at=ORIGIN):
    n, norm1 = norm_forward(x, sub(p, "norm1."), at.norm_eps)
    y, attn = attention_forward(n, sub(p, "attn."), at)
    x = x + at.drop.hidden(y, "attn.y")  # (B, T, D)
    n, norm2 = norm_forward(x, sub(p, "norm2."), at.norm_eps)
    y, mlp = mlp_forward(n, sub(p, "mlp."))
    y = at.drop.hidden(y, "mlp.y")
    y += x  # (B, T, D)
    return y, (norm1, attn, norm2, mlp, at.drop)


def block_backward_input(dy, cache, p):
    norm1, attn, norm2, mlp, drop = cache
    dn, mlp = mlp_backward_input(drop.hidden(dy, "mlp.y"), mlp, sub(p, "mlp."))
    dx, norm2 = norm_backward_input(dn, norm2, sub(p, "norm2."))
    dx += dy  # the residual's own gradient: without it the block forgets what lies below
    dn, attn = attention_backward_input(drop.hidden(dx, "attn.y"), attn, sub(p, "attn."))
    dy = dx
    dx, norm1 = norm_backward_input(dn, norm1, sub(p, "norm1."))
    dx += dy
    return dx, (norm1, attn, norm2, mlp)


def block_backward_weight(wcache):
    norm1, attn, norm2, mlp = wcache
    grads = prefixed("mlp.", mlp_backward_weight(mlp))
    grads |= prefixed("norm2.", norm_backward_weight(norm2))
    grads |= prefixed("attn.", attention_backward_weight(attn))
    grads |= prefixed("norm1.", norm_backward_weight(norm1))
    return grads


def block_backward(dy, cache, p):
    """Both halves of each part in turn: the cache of one is gone before the next one starts."""
    norm1, attn, norm2, mlp, drop = cache
    dn, dmlp = mlp_backward(drop.hidden(dy, "mlp.y"), mlp, sub(p, "mlp."))
    dx, norm2 = norm_backward_input(dn, norm2, sub(p, "norm2."))
    dx += dy  # again the residuals' own gradients, here
    dn, dattn = attention_backward(drop.hidden(dx, "attn.y"), attn, sub(p, "attn."))
    dy = dx
    dx, norm1 = norm_backward_input(dn, norm1, sub(p, "norm1."))
    dx += dy  # and here
    grads = prefixed("mlp.", dmlp) | prefixed("attn.", dattn)
    grads |= prefixed("norm2.", norm_backward_weight(norm2))
    grads |= prefixed("norm1.", norm_backward_weight(norm1))
    return dx, grads
