"""Every function pair of ``tparallel.serial`` in one form, so that one test can ask all of them.

``x, p -> y, cache``; ``dy, cache, p -> dx, wcache``; ``wcache -> grads``: the form that attention,
mlp, block, embedding and head have; linear, norm, gelu, heads and loss are put into it here.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from tparallel.config import ModelConfig, replace
from tparallel.config.presets import LLAMA
from tparallel.serial import (
    activation,
    attention,
    block,
    embedding,
    head,
    heads,
    linear,
    loss,
    mlp,
    norm,
    rope,
)
from tparallel.serial.context import ORIGIN, context
from tparallel.serial.parameters import initial, sub


class Layer(NamedTuple):
    x: np.ndarray
    p: dict[str, np.ndarray]
    forward: Callable
    backward_input: Callable
    backward_weight: Callable
    backward: Callable | None = None  # both halves, where serial offers them as one

    def gradients(self, dy, cache) -> tuple:
        dx, wcache = self.backward_input(dy, cache, self.p)
        return dx, self.backward_weight(wcache)


class Size(NamedTuple):
    B: int
    T: int
    model: ModelConfig


SIZES = {
    "odd": Size(2, 3, ModelConfig(L=1, D=6, H=2, T=3, V=7, F=5)),
    "short": Size(3, 5, ModelConfig(L=1, D=15, H=5, T=8, V=4, F=7)),
    "one": Size(1, 1, ModelConfig(L=1, D=4, H=1, T=2, V=2, F=3)),
}
KINDS = (
    *("linear", "linear without bias", "norm", "gelu", "heads", "attention"),
    *("mlp", "block", "embed", "head", "loss"),
    *("rms norm", "swiglu", "rope"),
    *(f"llama {kind}" for kind in ("attention", "mlp", "block", "embed", "head")),
)
WHOLE = [
    kind for kind in KINDS if kind.split()[-1] in ("attention", "mlp", "block", "embed", "head")
]


def make(kind: str, size: str, dtype="float64") -> Layer:
    """The layer with random parameters and a random input of unit variance."""
    B, T, c = SIZES[size]
    c, at = replace(c, K=c.K + c.K % 2), ORIGIN
    if kind.startswith("llama "):
        kind, c = kind.removeprefix("llama "), replace(c, **LLAMA)
        at = context(c, dtype)
    rng = np.random.default_rng(7)

    def normal(*shape):
        return rng.normal(size=shape).astype(dtype)

    x, tokens = normal(B, T, c.D), rng.integers(0, c.V, (B, T))
    p = initial(c, "block.0", seed=1, dtype=dtype, style="random")
    attn, feed = sub(p, "attn."), sub(p, "mlp.")
    if kind == "linear":
        return _linear(x, {"w": attn["w_kv"], "b": attn["b_kv"]})
    if kind == "linear without bias":
        return _linear(normal(B, T, c.H, c.K), {"w": attn["w_out"]}, contract=2)
    if kind == "norm":
        return _norm(x, sub(p, "norm1."))
    if kind == "gelu":
        return _plain(2 * x, activation.activation_forward, activation.activation_backward)
    if kind == "swiglu":
        h = 2 * normal(B, T, 2, c.F)
        return _plain(h, activation.activation_forward, activation.activation_backward)
    if kind == "rope":
        return _rope(normal(B, T, c.H + 2 * c.Hkv, c.K), c, dtype)
    if kind == "rms norm":
        return _norm(x, {"g": sub(p, "norm1.")["g"]})
    if kind == "heads":
        return _heads(normal(B, T, c.H + 2 * c.Hkv, c.K), c)
    if kind == "loss":
        return _loss(normal(B, T, c.V), tokens, count=2 * B * T)
    if kind == "embed":
        return _of(embedding, "embed", tokens, initial(c, "embed", 1, dtype, "random"), at=at)
    if kind == "head":
        return _of(head, "head", x, initial(c, "head", 1, dtype, "random"), at=at)
    module, p = {"attention": (attention, attn), "mlp": (mlp, feed), "block": (block, p)}[kind]
    return _of(module, kind, x, p, **({} if kind == "mlp" else {"at": at}))


def _of(module, name, x, p, **more) -> Layer:
    """A layer that has the form already."""
    forward = partial(getattr(module, f"{name}_forward"), **more)
    parts = ("backward_input", "backward_weight", "backward")
    return Layer(x, p, forward, *(getattr(module, f"{name}_{part}") for part in parts))


def _linear(x, p, contract=1) -> Layer:
    def weight(wcache):
        dw, db = (
            linear.linear_backward_weight(*wcache, contract),
            linear.bias_backward(p, b=wcache[1]),
        )
        return {"w": dw, **db}

    return Layer(
        x,
        p,
        lambda x, p: (linear.linear_forward(x, p["w"], p.get("b"), contract), x),
        lambda dy, x, p: (linear.linear_backward_input(dy, p["w"], contract), (x, dy)),
        weight,
    )


def _norm(x, p) -> Layer:
    return Layer(
        x,
        p,
        lambda x, p: norm.norm_forward(x, p, 1e-5),
        norm.norm_backward_input,
        norm.norm_backward_weight,
    )


def _plain(x, forward, backward) -> Layer:
    """No parameters, and so no second half."""
    return Layer(
        x, {}, lambda x, p: forward(x), lambda dy, c, p: (backward(dy, c), None), lambda wcache: {}
    )


def _heads(qkv, c) -> Layer:
    """q (B, T, H, K) and kv (B, T, 2, Hkv, K) as one array of heads."""

    def forward(qkv, p):
        kv = qkv[:, :, c.H :].reshape(*qkv.shape[:2], 2, c.Hkv, c.K)
        return heads.heads_forward(qkv[:, :, : c.H], kv)

    def backward(dz, cache, p):
        dq, dkv = heads.heads_backward(dz, cache)
        return np.concatenate([dq, dkv.reshape(*dq.shape[:2], -1, c.K)], 2), None

    return Layer(qkv, {}, forward, backward, lambda wcache: {})


def _rope(qkv, c, dtype) -> Layer:
    """The same; keys and queries turn, values do not."""
    at = context(replace(c, position="rope"), dtype)

    def through(turn, a):
        a = a.copy()  # the pair works in place
        kv = a[:, :, c.H :].reshape(*a.shape[:2], 2, c.Hkv, c.K)
        q, kv = turn(a[:, :, : c.H].copy(), kv, at)
        return np.concatenate([q, kv.reshape(*q.shape[:2], -1, c.K)], 2)

    return Layer(
        qkv,
        {},
        lambda x, p: (through(rope.rope_forward, x), None),
        lambda dy, cache, p: (through(rope.rope_backward, dy), None),
        lambda wcache: {},
    )


def _loss(logits, targets, count) -> Layer:
    return Layer(
        logits,
        {},
        lambda x, p: loss.cross_entropy_forward(x, targets, count),
        lambda dy, cache, p: (dy * loss.cross_entropy_backward(cache), None),
        lambda wcache: {},
    )
