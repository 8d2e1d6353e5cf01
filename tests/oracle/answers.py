"""What the PyTorch twin says about a case, under the names that ``tparallel.serial`` uses."""

from collections.abc import Callable

import numpy as np
import torch

from tparallel.config import ModelConfig
from tparallel.serial.train import initial_params

from .cases import MICROBATCHES, Case
from .twin import Twin, accumulate, train

BLOCK = {  # our name -> the twin's
    "norm1.g": "norm1.weight",
    "norm1.b": "norm1.bias",
    "attn.w_q": "attn.q.weight",
    "attn.b_q": "attn.q.bias",
    "attn.w_kv": "attn.kv.weight",
    "attn.b_kv": "attn.kv.bias",
    "attn.w_out": "attn.out.weight",
    "attn.b_out": "attn.out.bias",
    "norm2.g": "norm2.weight",
    "norm2.b": "norm2.bias",
    "mlp.w_in": "mlp.0.weight",
    "mlp.b_in": "mlp.0.bias",
    "mlp.w_out": "mlp.2.weight",
    "mlp.b_out": "mlp.2.bias",
}
OTHERS = {
    "vocab.w_tok": "tok.weight",
    "embed.w_tok": "tok.weight",
    "embed.w_pos": "pos.weight",
    "head.norm.g": "norm.weight",
    "head.norm.b": "norm.bias",
    "head.w_tok": "head.weight",
}


def answers(case: Case) -> dict[str, np.ndarray]:
    """{"logits": ..., "grads/block.0/mlp.w_in": ..., "adamw/block.0/mlp.w_in": ..., ...}"""
    params = initial_params(case.model, case.train("sgd"))
    tokens, targets = (torch.tensor(a) for a in case.batches())
    build, read = judge(case.model)
    twin = build(case.model, params)
    out = {"tokens": tokens.numpy(), "targets": targets.numpy()}
    out |= flat("start", params)
    out["logits"] = twin(tokens[0]).detach().numpy()
    out["loss"] = np.array(accumulate(twin, tokens[0], targets[0], microbatches=1))
    out |= flat("grads", read(twin, params, lambda p: p.grad))
    for optimizer in ("sgd", "adamw"):
        twin = build(case.model, params)
        log = train(twin, tokens, targets, case.train(optimizer), MICROBATCHES)
        out |= {f"{optimizer}.{name}": np.array(values) for name, values in log.items()}
        out |= flat(optimizer, read(twin, params, lambda p: p.detach()))
    return out


def judge(c: ModelConfig) -> tuple[Callable, Callable]:
    """Who is asked: Hugging Face's programs about their architectures, the twin about GPT-2's."""
    if c.position == "rope":
        from . import llama

        return llama.Twin, llama.read
    return build, read


def build(c: ModelConfig, params: dict) -> Twin:
    """The twin with these weights, in float64."""
    twin = Twin(c).double()
    theirs = dict(twin.named_parameters())
    filled = set()
    for layer, p in params.items():
        for name, a in p.items():
            slot = theirs[twins_name(layer, name)]
            value = torch.tensor(a)
            if is_linear(layer, name):
                value = value.reshape(slot.shape[1], slot.shape[0]).T
            with torch.no_grad():
                slot.copy_(value.reshape(slot.shape))
            filled.add(twins_name(layer, name))
    assert filled == set(theirs), f"never filled: {set(theirs) - filled}"
    return twin


def read(twin: Twin, params: dict, part) -> dict:
    """``part`` of each of the twin's parameters, in the names and shapes of ``params``."""
    theirs = dict(twin.named_parameters())
    out: dict = {}
    for layer, p in params.items():
        out[layer] = {}
        for name, a in p.items():
            value = part(theirs[twins_name(layer, name)])
            value = value.T if is_linear(layer, name) else value
            out[layer][name] = value.reshape(a.shape).numpy().copy()
    return out


def twins_name(layer: str, name: str) -> str:
    if layer.startswith("block."):
        return f"blocks.{layer.split('.')[1]}.{BLOCK[name]}"
    return OTHERS[f"{layer}.{name}"]


def is_linear(layer: str, name: str) -> bool:
    """nn.Linear keeps its matrix as (out, in), ours is (in, out); tables of tokens are alike."""
    return layer.startswith("block.") and ".w_" in name


def flat(kind: str, tree: dict) -> dict[str, np.ndarray]:
    return {f"{kind}/{layer}/{name}": a for layer, p in tree.items() for name, a in p.items()}
