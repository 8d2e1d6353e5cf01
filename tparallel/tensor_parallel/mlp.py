"""y = gelu(x W_in + b_in) W_out + b_out, with F cut over tp.

Shapes:        x, y (B, T, D); W_in (D, F/tp); b_in (F/tp); W_out (F/tp, D); b_out (D)
Communicates:  forward the sum of y, backward the sum of dx: B T D elements each (region.py)
Compare with:  serial/mlp.py
Source:        Shoeybi et al. 2019, section 3, figure 3a
"""

from ..kernels import gelu_backward, gelu_forward
from ..serial.linear import linear_backward_input, linear_backward_weight, linear_forward


def mlp_forward(x, p, tp):
    x = tp.enter(x, what="mlp.x")  # (B, T, D)
    h = linear_forward(x, p["w_in"])  # (B, T, F/tp)
    a, slope = gelu_forward(h, p["b_in"])  # (B, T, F/tp)
    y = linear_forward(a, p["w_out"])  # (B, T, D) partial over tp
    y = tp.leave(y, what="mlp.y") + p["b_out"]  # (B, T, D): the bias once, after the sum
    return y, (tp.keep(x), slope, a)


def mlp_backward_input(dy, cache, p, tp):
    x, slope, a = cache
    x = tp.again(x, what="mlp.x again")
    dy = tp.leave_backward(dy, what="mlp.dy")  # (B, T, D)
    da = linear_backward_input(dy, p["w_out"])  # (B, T, F/tp)
    dh = gelu_backward(da, slope)  # (B, T, F/tp)
    dx = linear_backward_input(dh, p["w_in"])  # (B, T, D) partial over tp
    dx = tp.enter_backward(dx, what="mlp.dx")  # (B, T, D), pending
    return dx, (x, dh, a, dy)


def mlp_backward_weight(wcache):
    x, dh, a, dy = wcache
    grads = {}
    grads["w_out"], grads["b_out"] = linear_backward_weight(a, dy)
    grads["w_in"], grads["b_in"] = linear_backward_weight(x.wait(), dh)
    return grads


def mlp_backward(dy, cache, p, tp):
    dx, wcache = mlp_backward_input(dy, cache, p, tp)
    grads = mlp_backward_weight(wcache)  # while the sum of dx is on its way
    return dx.wait(), grads
