"""Causal multi-head self-attention with H cut over tp: every rank computes some of the heads.

Shapes:        x, y (B, T, D); W_qkv (D, 3, H/tp, K); b_qkv (3, H/tp, K);
               W_out (H/tp, K, D); b_out (D)
Communicates:  forward all_reduce of y, backward all_reduce of dx: B T D elements each
Compare with:  serial/attention.py
Source:        Shoeybi et al. 2019, section 3, figure 3b
"""

from ..serial.attention import heads_backward, heads_forward
from ..serial.linear import linear_backward_input, linear_backward_weight, linear_forward


def attention_forward(x, p, tp):
    qkv = linear_forward(x, p["w_qkv"], p["b_qkv"])  # (B, T, 3, H/tp, K)
    z, core = heads_forward(qkv)  # (B, T, H/tp, K)
    y = linear_forward(z, p["w_out"], contract=2)  # (B, T, D) partial over tp
    y = tp.all_reduce(y, what="attn.y") + p["b_out"]  # (B, T, D): the bias once, after the sum
    return y, (x, core, z)


def attention_backward_input(dy, cache, p, tp):
    x, core, z = cache
    dz = linear_backward_input(dy, p["w_out"], contract=2)  # (B, T, H/tp, K)
    dqkv = heads_backward(dz, core)  # (B, T, 3, H/tp, K)
    dx = linear_backward_input(dqkv, p["w_qkv"])  # (B, T, D) partial over tp
    dx = tp.all_reduce(dx, what="attn.dx")  # (B, T, D)
    return dx, (x, dqkv, z, dy)


def attention_backward_weight(wcache):
    x, dqkv, z, dy = wcache
    grads = {}
    grads["w_out"], grads["b_out"] = linear_backward_weight(z, dy, contract=2)
    grads["w_qkv"], grads["b_qkv"] = linear_backward_weight(x, dqkv)
    return grads


def attention_backward(dy, cache, p, tp):
    dx, wcache = attention_backward_input(dy, cache, p, tp)
    return dx, attention_backward_weight(wcache)
