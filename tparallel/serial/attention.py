"""Causal self-attention: y = heads(x W_q + b_q, x W_kv + b_kv) W_out + b_out (see heads.py).

Rotary positions turn queries and keys before they meet (rope.py); any bias may be absent.

Shapes:  x, y (B, T, D); W_q (D, H, K); b_q (H, K); W_kv (D, 2, Hkv, K); b_kv (2, Hkv, K);
         W_out (H, K, D); b_out (D)
Source:  Vaswani et al. 2017, section 3.2
"""

from ..kernels import heads_backward, heads_forward, rope_backward, rope_forward
from .context import ORIGIN
from .linear import (
    bias_backward,
    linear_backward_input,
    linear_backward_weight,
    linear_forward,
)


def attention_forward(x, p, at=ORIGIN):
    q = linear_forward(x, p["w_q"], p.get("b_q"))  # (B, T, H, K)
    kv = linear_forward(x, p["w_kv"], p.get("b_kv"))  # (B, T, 2, Hkv, K)
    q, kv = rope_forward(q, kv, at)
    z, core = heads_forward(q, at.extend(kv), at.drop, at.start)  # (B, T, H, K)
    y = linear_forward(z, p["w_out"], p.get("b_out"), contract=2)  # (B, T, D)
    return y, (x, core, z, at)


def attention_backward_input(dy, cache, p):
    x, core, z, at = cache
    dz = linear_backward_input(dy, p["w_out"], contract=2)  # (B, T, H, K)
    dq, dkv = heads_backward(dz, core)  # (B, T, H, K), (B, T, 2, Hkv, K)
    dq, dkv = rope_backward(dq, dkv, at)
    dx = linear_backward_input(dq, p["w_q"])  # (B, T, D)
    dx += linear_backward_input(dkv, p["w_kv"])
    return dx, (x, dq, dkv, z, dy, [*p])


def attention_backward_weight(wcache):
    x, dq, dkv, z, dy, names = wcache
    grads = {}
    grads["w_out"] = linear_backward_weight(z, dy, contract=2)
    grads["w_kv"] = linear_backward_weight(x, dkv)
    grads["w_q"] = linear_backward_weight(x, dq)
    return grads | bias_backward(names, b_out=dy, b_kv=dkv, b_q=dq)


def attention_backward(dy, cache, p):
    dx, wcache = attention_backward_input(dy, cache, p)
    return dx, attention_backward_weight(wcache)
