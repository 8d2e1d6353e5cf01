"""The loss of the model by its definition: one token and one head at a time, no arrays of batches.

A second text for the same formulas.  Finite differences prove that backward is the derivative of
forward; only a definition (or somebody else's program) can say that forward is the right function.

Source: Radford et al. 2019, section 2.3; Vaswani et al. 2017, section 3.2; Su et al. 2021
"""

import numpy as np

from ..config import ModelConfig
from ..serial.model import layer_view, layers_of
from ..serial.parameters import sub


def loss(c: ModelConfig, params: dict, tokens: np.ndarray, targets: np.ndarray) -> float:
    """− mean over tokens of log softmax(logits)[target], in nats.  tokens, targets (G, T).

    Rotary positions without scaling only.
    """
    embed, *blocks, head = (layer_view(params, layer) for layer in layers_of(params))
    total = 0.0
    for row, wanted in zip(tokens, targets):
        x = [_embed(c, embed, token, t) for t, token in enumerate(row)]
        for p in blocks:
            attn = sub(p, "attn.")
            normed = [_norm(c, v, sub(p, "norm1.")) for v in x]
            heads = [_heads(c, v, t, attn) for t, v in enumerate(normed)]
            x = [v + _attend(heads, t, attn) for t, v in enumerate(x)]
            x = [v + _mlp(c, _norm(c, v, sub(p, "norm2.")), sub(p, "mlp.")) for v in x]
        for v, target in zip(x, wanted):
            scores = head["w_tok"] @ _norm(c, v, sub(head, "norm."))
            total -= np.log(_softmax(scores)[target])
    return total / targets.size


def _embed(c, p, token, t):
    return p["w_tok"][token] + (p["w_pos"][t] if c.position == "learned" else 0)


def _norm(c, v, p):
    if c.norm == "rmsnorm":
        return p["g"] * v / np.sqrt(np.mean(v**2) + c.norm_eps)
    return p["g"] * (v - np.mean(v)) / np.sqrt(np.var(v) + c.norm_eps) + p["b"]


def _heads(c, v, t, p):
    """Of token t: q (H, K), and k and v (Hkv, K)."""
    k, value = np.tensordot(v, p["w_kv"], 1) + p.get("b_kv", 0)
    q = np.tensordot(v, p["w_q"], 1) + p.get("b_q", 0)
    return (_turn(c, q, t), _turn(c, k, t), value) if c.position == "rope" else (q, k, value)


def _turn(c, heads, t):
    """Pairs of numbers as complex ones, times e^(i t θ)."""
    theta = [c.rope_theta ** (-2 * i / c.K) for i in range(c.K // 2)]
    z = (heads[:, : c.K // 2] + 1j * heads[:, c.K // 2 :]) * np.exp(1j * t * np.array(theta))
    return np.concatenate([z.real, z.imag], 1)


def _attend(heads, t, p):
    """Token t looks at tokens 0 ... t, head by head; head h reads key/value head h Hkv // H."""
    H, K, D = p["w_out"].shape
    out = np.zeros(D) + p.get("b_out", 0)
    for h in range(H):
        q, g = heads[t][0][h], h * p["w_kv"].shape[2] // H
        weights = _softmax(np.array([q @ heads[s][1][g] / np.sqrt(K) for s in range(t + 1)]))
        out += sum(w * heads[s][2][g] for s, w in enumerate(weights)) @ p["w_out"][h]
    return out


def _mlp(c, v, p):
    h = np.tensordot(v, p["w_in"], 1) + p.get("b_in", 0)
    if c.mlp == "swiglu":
        gate, up = h
        return (gate / (1 + np.exp(-gate)) * up) @ p["w_out"] + p.get("b_out", 0)
    gelu = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    return gelu @ p["w_out"] + p.get("b_out", 0)


def _softmax(scores):
    e = np.exp(scores - scores.max())
    return e / e.sum()
