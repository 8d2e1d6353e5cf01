"""config.json <-> ModelConfig, by the table of its architecture."""

from typing import Any

from ..config import ModelConfig
from ..config.rules import either
from ..errors import WeightsError
from . import rope
from .architectures import ARCHITECTURES, GPT2, REQUIRED, Architecture

ELSEWHERE = {  # keys that change what a model computes, in whatever family they occur
    "quantization_config": "quantised weights",
    "num_experts": "a mixture of experts",
    "num_local_experts": "a mixture of experts",
    "n_routed_experts": "a mixture of experts",
    "alibi": "ALiBi positions",
    "use_qk_norm": "normed queries and keys",
    "qk_layernorm": "normed queries and keys",
    "attn_logit_softcapping": "capped scores",
    "final_logit_softcapping": "capped logits",
    "rope_interleaved": "rotary positions of neighbouring numbers",
}


def architecture_of(config: dict, where: str) -> Architecture:
    """The table that reads this model.  Errors: WeightsError where there is none."""
    said = config.get("architectures") or [_class_of(config.get("model_type"))]
    known = [name for name in said if name in ARCHITECTURES]
    if not known:
        raise WeightsError(
            f"a model must be of an architecture that is known here: {where} says "
            f"{', '.join(map(str, said))}. Use a model of {either(ARCHITECTURES)}."
        )
    return ARCHITECTURES[known[0]]


def model_config(config: dict, where: str, T: int = 0) -> ModelConfig:
    """What config.json says, in our letters, for rows of T tokens (0: the most that there can be).
    ``where`` names the file in errors.

    Errors: WeightsError where it asks for what is not computed here.
    """
    a = architecture_of(config, where)
    for key, what in ELSEWHERE.items():
        if config.get(key):
            raise _refuse(where, key, config[key], f"{what}, which this program does not compute")
    for key, allowed in a.only.items():
        if config.get(key, allowed[0]) not in allowed:
            raise _refuse(where, key, config[key], f"here it can be {either(map(repr, allowed))}")
    fields: dict[str, Any] = dict(a.is_this)
    for key, ours, default in a.settings:
        value = config.get(key, default)
        if value is REQUIRED:
            raise WeightsError(
                f"config.json must say what the model is: {where} has no {key}. Use the one that "
                "belongs to the weights."
            )
        if value is not None:
            fields[ours] = value
    if a.is_this["position"] == "rope":
        fields |= rope.read(config, fields["T"], where)
    _check_window(config, fields["L"], T or fields["T"], where)
    return ModelConfig(**fields)


def config_json(c: ModelConfig, dtype: str) -> dict:
    """The config.json of a model of ours, stored in ``dtype``.

    Errors: WeightsError where no known architecture is such a model.
    """
    a = architecture_for(c)
    out: dict[str, Any] = {"architectures": [a.name], "model_type": a.model_type}
    out |= {key: getattr(c, ours) for key, ours, _ in a.settings}
    out |= {key: allowed[0] for key, allowed in a.only.items()}
    if c.position == "rope":
        out |= rope.written(c)
    return out | {"torch_dtype": dtype}


def architecture_for(c: ModelConfig) -> Architecture:
    """Which of the known ones is this model?"""
    for a in ARCHITECTURES.values():
        if a.fits(c) and all(getattr(c, ours) == value for ours, value in a.is_this.items()):
            return a
    asked = ", ".join(f"{f} = {getattr(c, f)}" for f in ("H", "Hkv", "K", "D", *GPT2.is_this))
    ways = [f"{n}: {', '.join(map(str, a.is_this.values()))}" for n, a in ARCHITECTURES.items()]
    raise WeightsError(
        "a model can be exported if it is of an architecture that others know: this one has "
        f"{asked}. Train one of these: {'; '.join(ways)}, with H · K = D."
    )


def _check_window(config: dict, L: int, T: int, where: str) -> None:
    """Does a layer see less than the whole row?"""
    if config.get("layer_types") is not None:
        limited = "sliding_attention" in config["layer_types"]
    else:
        limited = bool(config.get("use_sliding_window")) and config.get("max_window_layers", 28) < L
    window = config.get("sliding_window") or 4096
    if limited and window < T:
        raise WeightsError(
            "attention must see the whole row: by "
            f"{where} sliding_window = {window}, and rows have T = {T} tokens. Use T of at most "
            f"{window}."
        )


def _class_of(model_type: Any) -> str:
    return next((a.name for a in ARCHITECTURES.values() if a.model_type == model_type), "nothing")


def _refuse(where: str, key: str, value: Any, why: str) -> WeightsError:
    shown = str(value) if len(str(value)) < 60 else f"{str(value)[:60]}..."
    return WeightsError(
        f"a model must be one that this program computes: {where} has {key} = {shown}: {why}. "
        "Use another model, or one that was trained without it."
    )
