"""Causal multi-head self-attention with H cut over tp: every rank computes some of the heads.

Rotary positions turn queries and keys before they meet (rope.py); any bias may be absent.
Where tp is larger than Hkv, tp/Hkv ranks use the same key/value head; its gradient is their sum.

Shapes:        x, y (B, T, D); W_q (D, H/tp, K); b_q (H/tp, K); W_kv (D, 2, Hkv/tp, K);
               b_kv (2, Hkv/tp, K); W_out (H/tp, K, D); b_out (D)
Communicates:  forward the sum of y, backward the sum of dx: B T D elements each (region.py)
Compare with:  serial/attention.py
Source:        Shoeybi et al. 2019, section 3, figure 3b
"""

from ..kernels import heads_backward, heads_forward, rope_backward, rope_forward
from ..serial.context import ORIGIN
from ..serial.linear import (
    bias_backward,
    biased,
    linear_backward_input,
    linear_backward_weight,
    linear_forward,
)


def attention_forward(x, p, tp, at=ORIGIN):
    x = tp.enter(x, what="attn.x")  # (B, T, D)
    q = linear_forward(x, p["w_q"], p.get("b_q"))  # (B, T, H/tp, K)
    kv = linear_forward(x, p["w_kv"], p.get("b_kv"))  # (B, T, 2, Hkv/tp, K)
    q, kv = rope_forward(q, kv, at)
    z, core = heads_forward(q, at.extend(kv), at.drop, at.start)  # (B, T, H/tp, K)
    y = linear_forward(z, p["w_out"], contract=2)  # (B, T, D) partial over tp
    y = biased(tp.leave(y, what="attn.y"), p.get("b_out"))  # (B, T, D): once, after the sum
    return y, (tp.keep(x), core, z, at)


def attention_backward_input(dy, cache, p, tp):
    x, core, z, at = cache
    x = tp.again(x, what="attn.x again")
    dy = tp.leave_backward(dy, what="attn.dy")  # (B, T, D)
    dz = linear_backward_input(dy, p["w_out"], contract=2)  # (B, T, H/tp, K)
    dq, dkv = heads_backward(dz, core)  # (B, T, H/tp, K), (B, T, 2, Hkv/tp, K)
    dq, dkv = rope_backward(dq, dkv, at)
    dx = linear_backward_input(dq, p["w_q"])  # (B, T, D) partial over tp
    dx += linear_backward_input(dkv, p["w_kv"])
    dx = tp.enter_backward(dx, what="attn.dx")  # (B, T, D), pending
    return dx, (x, dq, dkv, z, dy, [*p])


def attention_backward_weight(wcache):
    x, dq, dkv, z, dy, names = wcache
    grads = {}
    grads["w_out"] = linear_backward_weight(z, dy, contract=2)
    x = x.wait()
    grads["w_kv"] = linear_backward_weight(x, dkv)
    grads["w_q"] = linear_backward_weight(x, dq)
    return grads | bias_backward(names, b_out=dy, b_kv=dkv, b_q=dq)


def attention_backward(dy, cache, p, tp):
    dx, wcache = attention_backward_input(dy, cache, p, tp)
    grads = attention_backward_weight(wcache)  # while the sum of dx is on its way
    return dx.wait(), grads
