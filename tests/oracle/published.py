"""Small models of the families that Hugging Face's transformers has, with random weights.

Every number is random, biases and norms too: at the library's own start they are zeros and ones,
and a name that is mixed up would not show.
"""

import json
from contextlib import contextmanager
from copy import deepcopy

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

TOKENS = (3, 6)  # (B, T); T is shorter than the models'
NORMS = ("norm.weight", "layernorm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight")
SMALL = {"bos_token_id": 0, "eos_token_id": 0}
LLAMA = {
    "vocab_size": 37,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    **SMALL,
}
CASES = {
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config(vocab_size=37, n_positions=8, n_embd=16, n_layer=2, n_head=4, **SMALL),
    ),
    "gpt2-untied": (
        GPT2LMHeadModel,
        GPT2Config(vocab_size=29, n_positions=8, n_embd=12, n_layer=3, n_head=2, n_inner=20,
                   activation_function="gelu_pytorch_tanh", tie_word_embeddings=False,
                   layer_norm_epsilon=0.01, **SMALL),
    ),
    "llama": (LlamaForCausalLM, LlamaConfig(**LLAMA, rms_norm_eps=0.01)),
    "llama3-tied": (
        LlamaForCausalLM,
        LlamaConfig(**LLAMA | {"head_dim": 6}, tie_word_embeddings=True, rope_parameters={
            "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 16}),
    ),
    "llama-linear": (
        LlamaForCausalLM,
        LlamaConfig(**LLAMA, rope_parameters={
            "rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}),
    ),
    "llama-dynamic": (
        LlamaForCausalLM,
        LlamaConfig(**LLAMA, rope_parameters={
            "rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0}),
    ),
    "qwen2-tied": (Qwen2ForCausalLM, Qwen2Config(**LLAMA, tie_word_embeddings=True)),
    "qwen2-yarn": (
        Qwen2ForCausalLM,
        Qwen2Config(**LLAMA, rope_parameters={
            "rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0,
            "original_max_position_embeddings": 8}),
    ),
}  # fmt: skip


@contextmanager
def in_float64():
    """transformers computes norms and angles in float32, whatever a model's dtype is: bounds below
    1e-7 need the same formulas in float64."""
    kept = torch.float32, torch.float, torch.Tensor.float
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        torch.float32, torch.float, torch.Tensor.float = kept


def model_of(name: str, seed: int = 0):
    """The case's model in float32, ready to be asked."""
    kind, config = CASES[name]
    model = kind(deepcopy(config)).eval()
    rng = np.random.default_rng([seed, *name.encode()])
    with torch.no_grad():
        for key, p in model.named_parameters():
            one = (
                1.0
                if key.endswith(("norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight"))
                else 0.0
            )
            values = np.round(rng.normal(one, 0.3, tuple(p.shape)) * 64) / 64  # small when stored
            p.copy_(torch.from_numpy(values.astype("float32")))
    return model


def tokens_of(name: str) -> np.ndarray:
    """(B, T) int64; the first and the last id of the vocabulary are among them."""
    V = CASES[name][1].vocab_size
    ids = np.random.default_rng(1).integers(0, V, TOKENS)
    ids[0, :2], ids[-1, -2:] = 0, V - 1
    return ids


def logits_of(model, tokens: np.ndarray) -> np.ndarray:
    """(B, T, V) in float64, from the same weights."""
    model = model.double()
    with torch.no_grad(), in_float64():
        turned = getattr(model.base_model, "rotary_emb", None)
        if turned is not None:
            model.base_model.rotary_emb = type(turned)(model.config)
        return model(torch.from_numpy(tokens)).logits.numpy()


def logits_of_folder(folder, tokens: np.ndarray) -> np.ndarray:
    return logits_of(AutoModelForCausalLM.from_pretrained(folder).eval(), tokens)


def golden(name: str) -> dict[str, np.ndarray]:
    """config.json, every tensor of the file, tokens, and the logits."""
    model, tokens = model_of(name), tokens_of(name)
    config = {"architectures": [type(model).__name__], **CASES[name][1].to_diff_dict()}
    tied = model.config.tie_word_embeddings
    tensors = {k: v.numpy() for k, v in model.state_dict().items() if not (tied and "lm_head" in k)}
    return {
        "config": np.array(json.dumps(config)),
        **{f"tensor/{key}": value.copy() for key, value in tensors.items()},
        "tokens": tokens,
        "logits": logits_of(model, tokens),
    }
