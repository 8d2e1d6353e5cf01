"""y = gelu(x W_in + b_in) W_out + b_out, or SwiGLU: y = (silu(x W_gate) · (x W_up)) W_out.

W_gate and W_up lie side by side in W_in, as keys and values do in W_kv: one product, one cut.

Shapes:  x, y (B, T, D); W_in (D, F), or (D, 2, F) with a gate; b_in like it without D;
         W_out (F, D); b_out (D)
Source:  Vaswani et al. 2017, section 3.3; Shazeer 2020, section 2
"""

from ..kernels import activation_backward, activation_forward
from .linear import (
    bias_backward,
    linear_backward_input,
    linear_backward_weight,
    linear_forward,
)


def mlp_forward(x, p):
    h = linear_forward(x, p["w_in"])  # (B, T, F) or (B, T, 2, F)
    a, slope = activation_forward(h, p.get("b_in"))  # (B, T, F), like h
    y = linear_forward(a, p["w_out"], p.get("b_out"))  # (B, T, D)
    return y, (x, slope, a)


def mlp_backward_input(dy, cache, p):
    x, slope, a = cache
    da = linear_backward_input(dy, p["w_out"])  # (B, T, F)
    dh = activation_backward(da, slope)  # (B, T, F) or (B, T, 2, F)
    dx = linear_backward_input(dh, p["w_in"])  # (B, T, D)
    return dx, (x, dh, a, dy, [*p])


def mlp_backward_weight(wcache):
    x, dh, a, dy, names = wcache
    grads = {}
    grads["w_out"] = linear_backward_weight(a, dy)
    grads["w_in"] = linear_backward_weight(x, dh)
    return grads | bias_backward(names, b_out=dy, b_in=dh)


def mlp_backward(dy, cache, p):
    dx, wcache = mlp_backward_input(dy, cache, p)
    return dx, mlp_backward_weight(wcache)
