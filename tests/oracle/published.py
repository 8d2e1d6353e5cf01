"""Small models of the families that Hugging Face's transformers has, with random weights.

Every number is random, biases and norms too: at the library's own start they are zeros and ones,
and a name that is mixed up would not show.
"""

import json
from copy import deepcopy

import numpy as np
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

TOKENS = (3, 6)  # (B, T); T is shorter than the models'
NORMS = ("norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight")
SMALL = {"bos_token_id": 0, "eos_token_id": 0}
CASES = {
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config(vocab_size=37, n_positions=8, n_embd=16, n_layer=2, n_head=4, **SMALL),
    ),
    "gpt2-untied": (
        GPT2LMHeadModel,
        GPT2Config(vocab_size=29, n_positions=8, n_embd=12, n_layer=3, n_head=2, n_inner=20,
                   activation_function="gelu_pytorch_tanh", tie_word_embeddings=False,
                   **SMALL),
    ),
}  # fmt: skip


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
            p.copy_(torch.from_numpy(rng.normal(one, 0.3, tuple(p.shape)).astype("float32")))
    return model


def tokens_of(name: str) -> np.ndarray:
    """(B, T) int64; the first and the last id of the vocabulary are among them."""
    V = CASES[name][1].vocab_size
    ids = np.random.default_rng(1).integers(0, V, TOKENS)
    ids[0, :2], ids[-1, -2:] = 0, V - 1
    return ids


def logits_of(model, tokens: np.ndarray) -> np.ndarray:
    """(B, T, V) in float64, from the same weights."""
    with torch.no_grad():
        return model.double()(torch.from_numpy(tokens)).logits.numpy()


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
