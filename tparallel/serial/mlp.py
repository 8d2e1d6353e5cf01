"""y = gelu(x W_in + b_in) W_out + b_out.

Shapes:  x, y (B, T, D); W_in (D, F); b_in (F); W_out (F, D); b_out (D)
Source:  Vaswani et al. 2017, section 3.3
"""

from ..kernels import gelu_backward, gelu_forward
from .linear import linear_backward_input, linear_backward_weight, linear_forward


def mlp_forward(x, p):
    h = linear_forward(x, p["w_in"])  # (B, T, F)
    a, slope = gelu_forward(h, p["b_in"])  # (B, T, F)
    y = linear_forward(a, p["w_out"], p["b_out"])  # (B, T, D)
    return y, (x, slope, a)


def mlp_backward_input(dy, cache, p):
    x, slope, a = cache
    da = linear_backward_input(dy, p["w_out"])  # (B, T, F)
    dh = gelu_backward(da, slope)  # (B, T, F)
    dx = linear_backward_input(dh, p["w_in"])  # (B, T, D)
    return dx, (x, dh, a, dy)


def mlp_backward_weight(wcache):
    x, dh, a, dy = wcache
    grads = {}
    grads["w_out"], grads["b_out"] = linear_backward_weight(a, dy)
    grads["w_in"], grads["b_in"] = linear_backward_weight(x, dh)
    return grads


def mlp_backward(dy, cache, p):
    dx, wcache = mlp_backward_input(dy, cache, p)
    return dx, mlp_backward_weight(wcache)
