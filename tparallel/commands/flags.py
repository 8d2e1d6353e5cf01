"""Command-line flags for the three configs: one flag per field, so that none is missing."""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..config import PRESETS, Layout, ModelConfig, TrainConfig, preset, replace
from ..errors import ConfigError, DataError
from ..layouts import microbatches
from ..pipeline_parallel.schedules import SCHEDULES
from ..tokenizer import Tokenizer, of_folder
from ..weights import Source, opened

HELP = {
    "L": "blocks",
    "D": "model width",
    "H": "attention heads",
    "T": "sequence length in tokens",
    "V": "vocabulary; 256 holds every byte, 259 adds special tokens",
    "F": "feed-forward width",
    "Hkv": "key/value heads, each read by as many of the H",
    "K": "head size",
    "tied": "one table for the embedding and the head",
    "norm": "layernorm or rmsnorm",
    "norm_eps": "what norms add to the variance",
    "position": "learned (a table of T vectors) or rope (q and k turned by angles)",
    "rope_theta": "rope: base of the angles; larger turns slower",
    "rope_scaling": "rope for longer texts: none, or linear, dynamic, llama3 or yarn with their "
    "numbers, as in llama3:factor=32,original=8192",
    "mlp": "gelu, or swiglu (a gate beside the input)",
    "bias": "of linear layers: all, qkv or none",
    "tp": "ranks that share the work of each layer",
    "pp": "pipeline stages: ranks that hold different layers",
    "dp": "ranks that work on different rows of the batch",
    "zero": "ZeRO stage 0 to 3: what the dp ranks hold only a shard of",
    "schedule": f"order of the pipeline's work: {', '.join(SCHEDULES)}, or a text file",
    "chunks": "parts of the model that each pipeline stage holds",
    "cut": "parts with as many blocks each (even), or that cost the same (cost)",
    "microbatches": "M, parts into which each dp rank cuts its rows",
    "sp": "sequence parallelism over tp; backward's inputs: keep them, or regather them",
    "recompute": "in backward: none, selective (attention's T × T part) or full (every block)",
    "overlap": "sums over tp, gradients and parameters travel while layers compute",
    "bucket_bytes": "join layers into messages of at most this size; 0 for a message per layer",
    "reduce_each": "ZeRO 2 and 3: sum gradients after each microbatch, or once per step",
    "shard_group": "ZeRO: cut over groups of this many dp ranks and copy across; 0 for all of dp",
    "secondary": "ZeRO 3: cut over all of dp, and gather again from a copy in each shard group",
    "quantise": "ZeRO 3: weights in 8 bits, grads in 4 bits, or both, on the wire",
    "offload": "keep the optimizer's state in a mapped file (beside a GPU: in host memory)",
    "steps": "updates of the parameters",
    "global_batch": "sequences per update, over all ranks",
    "optimizer": "adamw or sgd",
    "lr": "largest learning rate",
    "warmup": "steps of linear warm-up, before half a cosine down",
    "min_lr": "where the cosine ends, as a share of lr",
    "beta1": "AdamW's memory of gradients",
    "beta2": "AdamW's memory of their squares",
    "eps": "what AdamW adds to the root of the squares",
    "weight_decay": "decay of matrices; biases and norms have none",
    "dropout": "share of elements dropped, at the sites of GPT-2; the same ones in every layout",
    "clip": "largest norm of all gradients together; 0 for no limit",
    "seed": "of the first parameters and of the order of the text",
    "dtype": "float32, float64, bfloat16 or float16; halves keep float32 master weights",
    "activations": "bfloat16: activations are kept and moved in half too (with dtype bfloat16, on "
    "a GPU)",
    "loss_scale": "float16: what gradients are multiplied by at the start",
    "scale_window": "float16: good steps in a row before the loss scale is doubled",
    "init": "gpt2, or random: nothing starts at zero, for proofs",
}
DEFAULTS = {  # where the field's own default would not say it
    "F": "4 D",
    "Hkv": "H",
    "K": "D / H",
    "sp": "none",
    "quantise": "none",
    "dp": "the ranks that tp × pp leave over",
    "schedule": "1f1b where pp > 1",
    "microbatches": "4, 2 or 1 where pp > 1, else 1",
    "chunks": "as many as the schedule needs",
    "activations": "float32 beside halves, else the dtype",
}


def add_flags(parser: argparse.ArgumentParser, *configs: type, only: tuple[str, ...] = ()) -> None:
    """A flag for every field of these dataclasses, or for those named; what is not given is absent
    from the args."""
    for config in configs:
        about = (config.__doc__ or "").splitlines()[0].replace("`", "")
        group = parser.add_argument_group(config.__name__.removesuffix("Config").lower(), about)
        if config is ModelConfig:
            group.add_argument(
                "--model",
                default=argparse.SUPPRESS,
                metavar="NAME",
                help="sizes and architecture by name; the flags below replace single values: "
                f"{', '.join(PRESETS)} (default: gpt2)",
            )
        for field in (f for f in fields(config) if not only or f.name in only):
            flag, kind = "--" + field.name.replace("_", "-"), type(field.default)
            default = DEFAULTS.get(field.name, "no" if field.default is False else field.default)
            default = "yes" if default is True else default
            how: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
            if kind is not bool:
                how = {"type": kind, "metavar": {int: "N", float: "X"}.get(kind, "NAME")}
            group.add_argument(
                flag,
                default=argparse.SUPPRESS,
                help=f"{HELP.get(field.name, field.name)} (default: {default})".replace("%", "%%"),
                **how,
            )


def model_config(args: argparse.Namespace) -> ModelConfig:
    return preset(getattr(args, "model", "gpt2"), **given(args, ModelConfig))


def weights(args: argparse.Namespace, comm: Any) -> Source | None:
    """What --weights names, which says what the model is: of the model's flags only --T may be
    given beside it, for rows shorter than the model's.  Errors: ConfigError, WeightsError."""
    if not getattr(args, "weights", None):
        return None
    other = [name for name in ("model", *given(args, ModelConfig)) if name in args and name != "T"]
    if other:
        raise ConfigError(
            f"the weights say what the model is: --weights {args.weights}, and also "
            f"--{other[0].replace('_', '-')} {getattr(args, other[0])}. Leave one of them away."
        )
    return opened(args.weights, getattr(args, "T", 0), comm)


def tokenizer(args: argparse.Namespace, V: int, source: Source | None) -> Tokenizer | None:
    """That of --tokenizer, or of the weights; None where tokens are bytes.  Errors: DataError."""
    if not args.tokenizer:
        return source.tokenizer() if source else None
    found = of_folder(Path(args.tokenizer), V)
    if found is None:
        raise DataError(
            f"--tokenizer needs a folder with tokenizer.json: {args.tokenizer} has none. Use a "
            "model's folder, or leave --tokenizer away: tokens are bytes then."
        )
    return found


def add_weights(group: Any) -> None:
    group.add_argument(
        "--weights",
        metavar="DIR",
        help="start from a model in Hugging Face's format: a folder with config.json and "
        "safetensors files, and tokenizer.json, which then makes the tokens; or from a checkpoint",
    )
    group.add_argument(
        "--tokenizer",
        metavar="DIR",
        help="a folder whose tokenizer.json makes the tokens (default: that of --weights, or "
        "else tokens are bytes)",
    )


def train_config(args: argparse.Namespace) -> TrainConfig:
    return TrainConfig(**given(args, TrainConfig))


def layout(args: argparse.Namespace, global_batch: int, ranks: int = 1) -> Layout:
    """The layout of the flags; dp, where it is not given, takes the ranks that tp × pp leave."""
    said = given(args, Layout)
    inner = Layout(tp=said.get("tp", 1), pp=said.get("pp", 1))  # what does not depend on dp
    out = Layout(**{"dp": max(1, ranks // inner.ranks), **said})
    if out.pp > 1 and "microbatches" not in said:
        out = replace(out, microbatches=microbatches(out.dp, global_batch))
    return out


def given(args: argparse.Namespace, config: type) -> dict:
    """The fields of a config that the flags name, and their values."""
    names = [field.name for field in fields(config)]
    return {name: value for name, value in vars(args).items() if name in names}
