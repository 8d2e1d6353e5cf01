"""The parameters: names, shapes, first values.

A layer's parameters are a flat dict, ``{"mlp.w_in": array, ...}``; the model's are a dict of
such dicts, one per layer: ``embed``, ``block.0``, ..., ``head``.  ``w_*`` are matrices (weight
decay applies), everything else is a bias or a norm.  With tied embeddings the one table that
``embed`` and ``head`` share is stored apart, as ``vocab``.
"""

from math import sqrt

import numpy as np

from ..backend import xp
from ..config import ModelConfig


def layer_names(L: int) -> list[str]:
    """The layers in the order of the forward pass."""
    return ["embed", *(f"block.{i}" for i in range(L)), "head"]


def shapes(c: ModelConfig) -> dict[str, dict[str, tuple[int, ...]]]:
    """{layer: {name: shape}}, of everything that is stored."""
    inner = (2, c.F) if c.mlp == "swiglu" else (c.F,)  # gate and up, or one
    embed = {"w_tok": (c.V, c.D), "w_pos": (c.T, c.D)}
    block = {
        "norm1.g": (c.D,),
        "norm1.b": (c.D,),
        "attn.w_q": (c.D, c.H, c.K),
        "attn.b_q": (c.H, c.K),
        "attn.w_kv": (c.D, 2, c.Hkv, c.K),
        "attn.b_kv": (2, c.Hkv, c.K),
        "attn.w_out": (c.H, c.K, c.D),
        "attn.b_out": (c.D,),
        "norm2.g": (c.D,),
        "norm2.b": (c.D,),
        "mlp.w_in": (c.D, *inner),
        "mlp.b_in": inner,
        "mlp.w_out": (c.F, c.D),
        "mlp.b_out": (c.D,),
    }
    head = {"norm.g": (c.D,), "norm.b": (c.D,), "w_tok": (c.V, c.D)}
    out: dict[str, dict] = {
        "embed": embed,
        **{f"block.{i}": dict(block) for i in range(c.L)},
        "head": head,
    }
    if c.tied:
        del embed["w_tok"], head["w_tok"]
        out = {"vocab": {"w_tok": (c.V, c.D)}, **out}
    return {layer: {n: s for n, s in p.items() if exists(n, c)} for layer, p in out.items()}


def exists(name: str, c: ModelConfig) -> bool:
    """Does this architecture have that parameter?"""
    last = name.rsplit(".", 1)[-1]
    if last == "w_pos":
        return c.position == "learned"
    if last == "b":
        return c.norm == "layernorm"
    if last in ("b_q", "b_kv"):
        return c.bias in ("all", "qkv")
    return c.bias == "all" or not last.startswith("b_")


def count(c: ModelConfig) -> int:
    """Ψ, the number of parameters."""
    return sum(int(np.prod(s)) for layer in shapes(c).values() for s in layer.values())


def stored_in(layer: str, tied: bool) -> tuple[str, ...]:
    """The dicts that hold what a layer uses: its own, and the shared table where there is one."""
    return ("vocab", layer) if tied and layer in ("embed", "head") else (layer,)


def decayed(name: str) -> bool:
    """Weight decay is for matrices; biases and norms are left alone."""
    return name.rsplit(".", 1)[-1].startswith("w_")


def initial(c: ModelConfig, layer: str, seed: int, dtype, style: str = "gpt2") -> dict:
    """The first values of one layer.  One random stream per parameter *name*: no layout, no
    order of layers and no number of ranks can change them.

    ``gpt2``: matrices N(0, 0.02²), those that feed the residual stream divided by √(2L); biases
    0, gains 1 (Radford et al. 2019, section 2.3).  ``random``: everything N(0, 0.2²), gains
    around 1: a start at which no parameter's gradient is zero or hidden, for proofs.
    """
    out = {}
    for name, shape in shapes(c)[layer].items():
        last = name.rsplit(".", 1)[-1]
        rng = np.random.default_rng([seed, *f"{layer}.{name}".encode()])
        if style == "random":
            value = rng.normal(1.0 if last == "g" else 0.0, 0.2, shape)
        elif last.startswith("w_"):
            std = 0.02 / sqrt(2 * c.L) if last == "w_out" else 0.02
            value = rng.normal(0.0, std, shape)
        else:
            value = np.full(shape, 1.0 if last == "g" else 0.0)
        out[name] = xp.asarray(value.astype(dtype))
    return out


def sub(p: dict, prefix: str) -> dict:
    """The entries whose name starts with ``prefix``, without it."""
    return {name[len(prefix) :]: a for name, a in p.items() if name.startswith(prefix)}


def prefixed(prefix: str, p: dict) -> dict:
    """The same entries, ``prefix`` put before each name."""
    return {prefix + name: a for name, a in p.items()}
