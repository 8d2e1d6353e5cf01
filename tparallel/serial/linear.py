"""y = x W + b, where W may contract several dims of x and make several dims of y.

Shapes:  x (*rows, *I), W (*I, *O), b (*O), y (*rows, *O), where ``contract`` is the number of
dims in I.  Example: W_kv (D, 2, H, K) takes x (B, T, D) to (B, T, 2, H, K) with contract = 1,
and W_out (H, K, D) takes z (B, T, H, K) back to (B, T, D) with contract = 2.
Each function is one matrix product of two-dimensional views, so that BLAS does the work.
"""

from math import prod

from ..backend import xp
from ..places import place
from ..products import product


def linear_forward(x, w, b=None, contract=1):
    """y = x W + b."""
    rows, outs = x.shape[: x.ndim - contract], w.shape[contract:]
    y = product(x.reshape(prod(rows), -1), w.reshape(-1, prod(outs))).reshape(rows + outs)
    return biased(y, b)


def linear_backward_input(dy, w, contract=1):
    """dx = dy Wᵀ."""
    ins, outs = w.shape[:contract], w.shape[contract:]
    rows = dy.shape[: dy.ndim - len(outs)]
    return product(dy.reshape(-1, prod(outs)), w.reshape(prod(ins), -1).T).reshape(rows + ins)


def linear_backward_weight(x, dy, contract=1):
    """dW = xᵀ dy."""
    rows, ins = x.shape[: x.ndim - contract], x.shape[x.ndim - contract :]
    outs = dy.shape[len(rows) :]
    dy2 = dy.reshape(prod(rows), -1)
    out = place(ins, outs, dy.dtype)  # where gradients are kept, if nothing is there yet
    dw = product(x.reshape(prod(rows), -1).T, dy2, out)
    return dw.reshape(ins + outs)


def biased(y, b):
    """y + b, in place; y itself where there is no bias."""
    if b is not None:
        y += b
    return y


def bias_backward(names, **dys):
    """db = Σ_rows dy of y (B, T, *O), for those biases that are among the parameters' names."""
    grads = {}
    for name, dy in dys.items():
        if name in names:
            dy2 = dy.reshape(dy.shape[0] * dy.shape[1], -1)
            db = xp.ones(len(dy2), dy2.dtype) @ dy2  # a row of ones: BLAS sums faster than sum()
            grads[name] = db.reshape(dy.shape[2:])
    return grads
