"""The simplest tensor parallelism: every rank holds all data and computes some of the columns.

A rank takes its columns of each product and all ranks gather the result, so that it is whole
again everywhere before the next product.  Easy to see, and what Megatron's way (``mlp.py``) is to
be measured against: that one cuts the weights instead, so that a rank's columns of the first
product are just what its rows of the second one need, and one sum of R D elements is left.

    bytes held        here: everything                     there: 1/n of weights and of R F
    elements gathered here: 2 R F + 2 R D + gradients      there: 2 sums of R D

Shapes:        x, y (B, T, D); W_in (D, F); b_in (F); W_out (F, D); b_out (D), on every rank
Communicates:  forward all_gather of h and y, backward of da and dx: 2 R (F + D) elements;
               and of the weights' gradients: 2 D F
Compare with:  mlp.py, serial/mlp.py
"""

from math import prod

from ..backend import xp
from ..serial.activation import activation_backward, gelu_forward
from .split import part


def mlp_forward(x, p, tp):
    h = gathered(lambda mine: x @ p["w_in"][:, mine], p["w_in"].shape[1], tp, what="mlp.h")
    a, slope = gelu_forward(h + p["b_in"])  # (B, T, F)
    y = gathered(lambda mine: a @ p["w_out"][:, mine], p["w_out"].shape[1], tp, what="mlp.y")
    return y + p["b_out"], (x, slope, a)


def mlp_backward_input(dy, cache, p, tp):
    x, slope, a = cache
    da = gathered(lambda mine: dy @ p["w_out"][mine].T, a.shape[-1], tp, what="mlp.da")
    dh = activation_backward(da, slope)  # (B, T, F)
    dx = gathered(lambda mine: dh @ p["w_in"][mine].T, x.shape[-1], tp, what="mlp.dx")
    return dx, (x, dh, a, dy)


def mlp_backward_weight(wcache, tp):
    x, dh, a, dy = (v.reshape(-1, v.shape[-1]) for v in wcache)
    return {
        "w_out": gathered(lambda mine: a.T @ dy[:, mine], dy.shape[1], tp, what="mlp.dw_out"),
        "b_out": dy.sum(0),
        "w_in": gathered(lambda mine: x.T @ dh[:, mine], dh.shape[1], tp, what="mlp.dw_in"),
        "b_in": dh.sum(0),
    }


def mlp_backward(dy, cache, p, tp):
    dx, wcache = mlp_backward_input(dy, cache, p, tp)
    return dx, mlp_backward_weight(wcache, tp)


def gathered(columns, size: int, tp, *, what: str):
    """All ``size`` columns of a product (..., size), of which each rank computes some."""
    if size % tp.size:
        raise ValueError(f"tp must divide the columns: {size} columns, tp = {tp.size}.")
    mine = columns(part(size, tp.rank, tp.size))
    rows = prod(mine.shape[:-1])
    parts = tp.all_gather(xp.ascontiguousarray(mine), what=what).reshape(tp.size, rows, -1)
    return parts.swapaxes(0, 1).reshape(*mine.shape[:-1], size)
