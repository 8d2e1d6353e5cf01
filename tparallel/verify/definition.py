"""The loss of the model by its definition: one token and one head at a time, no arrays of batches.

A second text for the same formulas.  Finite differences prove that backward is the derivative of
forward; only a definition (or somebody else's program) can say that forward is the right function.

Source: Radford et al. 2019, section 2.3; Vaswani et al. 2017, section 3.2
"""

import numpy as np

from ..serial.model import layer_view, layers_of
from ..serial.parameters import sub


def loss(params: dict, tokens: np.ndarray, targets: np.ndarray) -> float:
    """− mean over tokens of log softmax(logits)[target], in nats.  tokens, targets (G, T)."""
    embed, *blocks, head = (layer_view(params, layer) for layer in layers_of(params))
    total = 0.0
    for row, wanted in zip(tokens, targets):
        x = [embed["w_tok"][token] + embed["w_pos"][t] for t, token in enumerate(row)]
        for p in blocks:
            heads = [_heads(_norm(v, sub(p, "norm1.")), sub(p, "attn.")) for v in x]
            x = [v + _attend(heads, t, sub(p, "attn.")) for t, v in enumerate(x)]
            x = [v + _mlp(_norm(v, sub(p, "norm2.")), sub(p, "mlp.")) for v in x]
        for v, target in zip(x, wanted):
            scores = head["w_tok"] @ _norm(v, sub(head, "norm."))
            total -= np.log(_softmax(scores)[target])
    return total / targets.size


def _norm(v, p):
    return p["g"] * (v - np.mean(v)) / np.sqrt(np.var(v) + 1e-5) + p["b"]


def _heads(v, p):
    """Of one token: q (H, K), and k and v (Hkv, K)."""
    k, value = np.tensordot(v, p["w_kv"], 1) + p["b_kv"]
    return np.tensordot(v, p["w_q"], 1) + p["b_q"], k, value


def _attend(heads, t, p):
    """Token t looks at tokens 0 ... t, head by head; head h reads key/value head h Hkv // H."""
    H, K = p["w_out"].shape[:2]
    out = p["b_out"].copy()
    for h in range(H):
        q, g = heads[t][0][h], h * p["w_kv"].shape[2] // H
        weights = _softmax(np.array([q @ heads[s][1][g] / np.sqrt(K) for s in range(t + 1)]))
        out += sum(w * heads[s][2][g] for s, w in enumerate(weights)) @ p["w_out"][h]
    return out


def _mlp(v, p):
    h = v @ p["w_in"] + p["b_in"]
    gelu = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    return gelu @ p["w_out"] + p["b_out"]


def _softmax(scores):
    e = np.exp(scores - scores.max())
    return e / e.sum()
