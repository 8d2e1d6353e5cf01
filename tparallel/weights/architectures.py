"""The model families that others can read: their names and shapes beside ours, one table each.

A table is read in two directions: ``folder.py`` fills our arrays from their tensors, ``export.py``
their tensors from our arrays.  The patterns are those of ``blocks.py``; ``T``, ``V``, ``D``, ``H``
... are the sizes of ModelConfig, by which ``settings`` also names what config.json says.

Source: the classes of that name in Hugging Face transformers; GPT-2: Radford et al. 2019; Llama:
Touvron et al. 2023; Qwen2: Yang et al. 2024
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ..config import ModelConfig
from ..serial.parameters import layer_names

REQUIRED = object()  # a key that config.json must have


class Row(NamedTuple):
    """One array of ours, or an entry of it, as a block of one of theirs."""

    ours: str
    our_dims: str
    theirs: str
    their_dims: str


@dataclass(frozen=True)
class Architecture:
    """``settings``: (their key, our field, what a missing key means); ``only``: what config.json
    may say beside that (a missing key says the first), since nothing else is computed here."""

    name: str  # the class, in config.json under architectures
    model_type: str
    prefix: str  # of all names but the head's; some folders leave it away
    layer: str  # what a block's names begin with
    is_this: dict[str, Any]  # the fields of ModelConfig that make a model one of these
    settings: tuple[tuple[str, str, Any], ...]
    only: dict[str, tuple]
    table: tuple[Row, ...]  # the embedding and the last norm, by our names with their layer
    block: tuple[Row, ...]
    not_read: tuple[str, ...] = ()  # endings of names that hold no parameters
    head: str = "lm_head.weight"
    fits: Callable[[ModelConfig], bool] = lambda c: True  # what ``is_this`` cannot say

    def rows(self, c: ModelConfig) -> Iterator[tuple[str, Row]]:
        """(layer, row) of every parameter, with full names on their side."""
        for row in self.table:
            layer, _, name = row.ours.partition(".")
            yield layer, row._replace(ours=name, theirs=self.prefix + row.theirs)
        if not c.tied:
            yield "head", Row("w_tok", "V D", self.head, "V D")
        for i, layer in enumerate(layer_names(c.L)[1:-1]):
            for row in self.block:
                yield layer, row._replace(theirs=f"{self.prefix}{self.layer}.{i}.{row.theirs}")


GPT2 = Architecture(
    name="GPT2LMHeadModel",
    model_type="gpt2",
    prefix="transformer.",
    layer="h",
    is_this={"norm": "layernorm", "position": "learned", "mlp": "gelu", "bias": "all"},
    settings=(
        ("n_layer", "L", 12),
        ("n_embd", "D", 768),
        ("n_head", "H", 12),
        ("n_positions", "T", 1024),
        ("vocab_size", "V", 50257),
        ("n_inner", "F", None),
        ("layer_norm_epsilon", "norm_eps", 1e-5),
        ("tie_word_embeddings", "tied", True),
    ),
    only={
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    table=(
        Row("embed.w_tok", "V D", "wte.weight", "V D"),
        Row("embed.w_pos", "T D", "wpe.weight", "T D"),
        Row("head.norm.g", "D", "ln_f.weight", "D"),
        Row("head.norm.b", "D", "ln_f.bias", "D"),
    ),
    block=(  # their weights are (in, out), as ours are
        Row("norm1.g", "D", "ln_1.weight", "D"),
        Row("norm1.b", "D", "ln_1.bias", "D"),
        Row("attn.w_q", "D H K", "attn.c_attn.weight", "D (0/3 H K)"),
        Row("attn.b_q", "H K", "attn.c_attn.bias", "(0/3 H K)"),
        Row("attn.w_kv", "D 0/2 H K", "attn.c_attn.weight", "D (1/3 H K)"),
        Row("attn.b_kv", "0/2 H K", "attn.c_attn.bias", "(1/3 H K)"),
        Row("attn.w_kv", "D 1/2 H K", "attn.c_attn.weight", "D (2/3 H K)"),
        Row("attn.b_kv", "1/2 H K", "attn.c_attn.bias", "(2/3 H K)"),
        Row("attn.w_out", "H K D", "attn.c_proj.weight", "(H K) D"),
        Row("attn.b_out", "D", "attn.c_proj.bias", "D"),
        Row("norm2.g", "D", "ln_2.weight", "D"),
        Row("norm2.b", "D", "ln_2.bias", "D"),
        Row("mlp.w_in", "D F", "mlp.c_fc.weight", "D F"),
        Row("mlp.b_in", "F", "mlp.c_fc.bias", "F"),
        Row("mlp.w_out", "F D", "mlp.c_proj.weight", "F D"),
        Row("mlp.b_out", "D", "mlp.c_proj.bias", "D"),
    ),
    fits=lambda c: c.Hkv == c.H and c.H * c.K == c.D,
    not_read=(".attn.bias", ".attn.masked_bias"),  # the causal mask, in files of long ago
)

_LLAMA_SETTINGS = (
    ("num_hidden_layers", "L", REQUIRED),
    ("hidden_size", "D", REQUIRED),
    ("num_attention_heads", "H", REQUIRED),
    ("num_key_value_heads", "Hkv", None),
    ("head_dim", "K", None),
    ("intermediate_size", "F", REQUIRED),
    ("max_position_embeddings", "T", REQUIRED),
    ("vocab_size", "V", REQUIRED),
    ("rms_norm_eps", "norm_eps", 1e-6),
    ("tie_word_embeddings", "tied", False),
)
LLAMA = Architecture(
    name="LlamaForCausalLM",
    model_type="llama",
    prefix="model.",
    layer="layers",
    is_this={"norm": "rmsnorm", "position": "rope", "mlp": "swiglu", "bias": "none"},
    settings=_LLAMA_SETTINGS,
    only={"hidden_act": ("silu", "swish"), "attention_bias": (False,), "mlp_bias": (False,)},
    table=(
        Row("embed.w_tok", "V D", "embed_tokens.weight", "V D"),
        Row("head.norm.g", "D", "norm.weight", "D"),
    ),
    block=(  # their weights are (out, in)
        Row("norm1.g", "D", "input_layernorm.weight", "D"),
        Row("attn.w_q", "D H K", "self_attn.q_proj.weight", "(H K) D"),
        Row("attn.w_kv", "D 0/2 Hkv K", "self_attn.k_proj.weight", "(Hkv K) D"),
        Row("attn.w_kv", "D 1/2 Hkv K", "self_attn.v_proj.weight", "(Hkv K) D"),
        Row("attn.w_out", "H K D", "self_attn.o_proj.weight", "D (H K)"),
        Row("norm2.g", "D", "post_attention_layernorm.weight", "D"),
        Row("mlp.w_in", "D 0/2 F", "mlp.gate_proj.weight", "F D"),
        Row("mlp.w_in", "D 1/2 F", "mlp.up_proj.weight", "F D"),
        Row("mlp.w_out", "F D", "mlp.down_proj.weight", "D F"),
    ),
    not_read=(".rotary_emb.inv_freq",),
)

QWEN2 = replace(
    LLAMA,
    name="Qwen2ForCausalLM",
    model_type="qwen2",
    is_this={**LLAMA.is_this, "bias": "qkv"},
    only={"hidden_act": ("silu", "swish")},
    block=(
        *LLAMA.block,
        Row("attn.b_q", "H K", "self_attn.q_proj.bias", "(H K)"),
        Row("attn.b_kv", "0/2 Hkv K", "self_attn.k_proj.bias", "(Hkv K)"),
        Row("attn.b_kv", "1/2 Hkv K", "self_attn.v_proj.bias", "(Hkv K)"),
    ),
)

ARCHITECTURES = {a.name: a for a in (GPT2, LLAMA, QWEN2)}
