"""Hugging Face's Llama and Qwen2 with our parameters in them, all of it in float64.

Their programs cast norms and angles to float32 whatever the dtype of the model: ``in_float64``
makes these casts lead to float64, and changes nothing else.
"""

from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from tparallel.config import ModelConfig

NAMES: dict[str, tuple[str, ...]] = {  # ours, of a block -> theirs; two share one of ours
    "norm1.g": ("input_layernorm.weight",),
    "norm2.g": ("post_attention_layernorm.weight",),
    "attn.w_q": ("self_attn.q_proj.weight",),
    "attn.b_q": ("self_attn.q_proj.bias",),
    "attn.w_out": ("self_attn.o_proj.weight",),
    "mlp.w_out": ("mlp.down_proj.weight",),
    "attn.w_kv": ("self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "attn.b_kv": ("self_attn.k_proj.bias", "self_attn.v_proj.bias"),
    "mlp.w_in": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
}
OTHERS = {
    "vocab.w_tok": "model.embed_tokens.weight",
    "embed.w_tok": "model.embed_tokens.weight",
    "head.norm.g": "model.norm.weight",
    "head.w_tok": "lm_head.weight",
}
TYPES = {  # our names of a scaling's numbers -> theirs
    "factor": "factor",
    "original": "original_max_position_embeddings",
    "low": "low_freq_factor",
    "high": "high_freq_factor",
    "fast": "beta_fast",
    "slow": "beta_slow",
    "attention": "attention_factor",
}


@contextmanager
def in_float64():
    with (
        mock.patch.object(torch, "float", torch.float64),
        mock.patch.object(torch, "float32", torch.float64),
        mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
    ):
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)  # of a quotient of integers
        yield
        torch.set_default_dtype(before)


class Twin(nn.Module):
    """Their model with these weights; tokens -> logits."""

    def __init__(self, c: ModelConfig, params: dict):
        super().__init__()
        with in_float64():
            self.model = program(c).double()
        named = dict(self.model.named_parameters())
        for layer, p in params.items():
            for name, a in p.items():
                for slot, part in zip(slots(layer, name), parts(name, a)):
                    with torch.no_grad():
                        named.pop(slot).copy_(torch.tensor(as_theirs(layer, name, part)))
        assert not named, f"never filled: {[*named]}"

    def forward(self, tokens):
        with in_float64():
            return self.model(tokens, use_cache=False).logits


def program(c: ModelConfig) -> nn.Module:
    """Theirs, of this architecture and these sizes."""
    numbers = {TYPES[n]: v for n, v in c.scaling._asdict().items() if n != "kind" and v}
    numbers = {n: int(v) if "embeddings" in n else v for n, v in numbers.items()}
    kind = "default" if c.scaling.kind == "none" else c.scaling.kind
    longest = c.T
    if kind == "dynamic":  # which begins to scale there
        longest = numbers.pop(TYPES["original"])
    llama = c.bias == "none"
    config = (LlamaConfig if llama else Qwen2Config)(
        vocab_size=c.V,
        hidden_size=c.D,
        intermediate_size=c.F,
        num_hidden_layers=c.L,
        num_attention_heads=c.H,
        num_key_value_heads=c.Hkv,
        head_dim=c.K,
        max_position_embeddings=longest,
        rms_norm_eps=c.norm_eps,
        tie_word_embeddings=c.tied,
        rope_parameters={"rope_type": kind, "rope_theta": c.rope_theta, **numbers},
        bos_token_id=0,
        eos_token_id=0,
    )
    return (LlamaForCausalLM if llama else Qwen2ForCausalLM)(config)


def read(twin: Twin, params: dict, part) -> dict:
    """``part`` of each of their parameters, in the names and shapes of ``params``."""
    named = dict(twin.model.named_parameters())
    out: dict = {}
    for layer, p in params.items():
        out[layer] = {}
        for name, a in p.items():
            found = [part(named[slot]).numpy() for slot in slots(layer, name)]
            found = [f.T if is_matrix(layer, name) else f for f in found]
            shape = parts(name, a)[0].shape
            found = [f.reshape(shape) for f in found]
            whole = np.stack(found, pair_dim(name)) if len(found) == 2 else found[0]
            out[layer][name] = whole.copy()
    return out


def slots(layer: str, name: str) -> list[str]:
    """Their names of a parameter of ours."""
    if layer.startswith("block."):
        number = layer.removeprefix("block.")
        return [f"model.layers.{number}.{theirs}" for theirs in NAMES[name]]
    return [OTHERS[f"{layer}.{name}"]]


def parts(name: str, a: np.ndarray) -> list[np.ndarray]:
    """Ours, or the two of theirs that it holds side by side."""
    if len(NAMES.get(name, "1")) == 1:
        return [a]
    return [a.take(i, pair_dim(name)) for i in (0, 1)]


def pair_dim(name: str) -> int:
    return 0 if ".b_" in name else 1


def is_matrix(layer: str, name: str) -> bool:
    """nn.Linear keeps (out, in), ours is (in, out); tables of tokens are alike."""
    return layer.startswith("block.") and ".w_" in name


def as_theirs(layer: str, name: str, a: np.ndarray) -> np.ndarray:
    if not is_matrix(layer, name):
        return a.reshape(-1) if a.ndim < 3 and ".b_" in name else a
    return (a.reshape(-1, a.shape[-1]) if "w_out" in name else a.reshape(len(a), -1)).T
