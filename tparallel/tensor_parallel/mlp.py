"""y = gelu(x W_in + b_in) W_out + b_out, or SwiGLU, with F cut over tp.

Shapes:        x, y (B, T, D); W_in (D, F/tp), or (D, 2, F/tp) with a gate; b_in like it without D;
               W_out (F/tp, D); b_out (D)
Communicates:  forward the sum of y, backward the sum of dx: B T D elements each (region.py)
Compare with:  serial/mlp.py
Source:        Shoeybi et al. 2019, section 3, figure 3a
"""

from ..kernels import activation_backward, activation_forward
from ..serial.linear import (
    bias_backward,
    biased,
    linear_backward_input,
    linear_backward_weight,
    linear_forward,
)


def mlp_forward(x, p, tp):
    x = tp.enter(x, what="mlp.x")  # (B, T, D)
    h = linear_forward(x, p["w_in"])  # (B, T, F/tp) or (B, T, 2, F/tp)
    a, slope = activation_forward(h, p.get("b_in"))  # (B, T, F/tp), like h
    y = linear_forward(a, p["w_out"])  # (B, T, D) partial over tp
    y = biased(tp.leave(y, what="mlp.y"), p.get("b_out"))  # (B, T, D): once, after the sum
    return y, (tp.keep(x), slope, a)


def mlp_backward_input(dy, cache, p, tp):
    x, slope, a = cache
    x = tp.again(x, what="mlp.x again")
    dy = tp.leave_backward(dy, what="mlp.dy")  # (B, T, D)
    da = linear_backward_input(dy, p["w_out"])  # (B, T, F/tp)
    dh = activation_backward(da, slope)  # (B, T, F/tp) or (B, T, 2, F/tp)
    dx = linear_backward_input(dh, p["w_in"])  # (B, T, D) partial over tp
    dx = tp.enter_backward(dx, what="mlp.dx")  # (B, T, D), pending
    return dx, (x, dh, a, dy, [*p])


def mlp_backward_weight(wcache):
    x, dh, a, dy, names = wcache
    grads = {}
    grads["w_out"] = linear_backward_weight(a, dy)
    grads["w_in"] = linear_backward_weight(x.wait(), dh)
    return grads | bias_backward(names, b_out=dy, b_in=dh)


def mlp_backward(dy, cache, p, tp):
    dx, wcache = mlp_backward_input(dy, cache, p, tp)
    grads = mlp_backward_weight(wcache)  # while the sum of dx is on its way
    return dx.wait(), grads
