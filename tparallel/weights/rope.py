"""Rotary positions in config.json: ``rope_parameters``, or ``rope_theta`` and ``rope_scaling`` in
older files.  What each kind of scaling computes is in serial/rope.py.

Source: modeling_rope_utils of Hugging Face transformers
"""

from math import log
from typing import Any

from ..config import ModelConfig
from ..config.scaling import RopeScaling
from ..errors import WeightsError

ORIGINAL = "original_max_position_embeddings"
NUMBERS = {  # our kind -> our number: theirs
    "none": {},
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low": "low_freq_factor",
        "high": "high_freq_factor",
        "original": ORIGINAL,
    },
    "yarn": {
        "factor": "factor",
        "original": ORIGINAL,
        "fast": "beta_fast",
        "slow": "beta_slow",
        "attention": "attention_factor",
    },
}


def read(config: dict, T: int, where: str) -> dict[str, Any]:
    """``rope_theta`` and ``rope_scaling`` of ModelConfig; T is max_position_embeddings.

    Errors: WeightsError for a kind, or a use of one, that is not computed here.
    """
    said = config.get("rope_scaling") or config.get("rope_parameters") or {}
    theta = said.get("rope_theta", config.get("rope_theta", 10000.0))
    kind = said.get("rope_type", said.get("type", "default"))
    kind = "none" if kind == "default" else kind
    partial = said.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    for refused, what in (
        (kind not in NUMBERS, f"rope_type = {kind}"),
        (partial not in (None, 1, 1.0), f"partial_rotary_factor = {partial}"),
        (kind == "yarn" and said.get("truncate") is False, "truncate = False"),
    ):
        if refused:
            raise WeightsError(
                f"rotary positions must be of a kind that this program computes: {where} has "
                f"{what}; here there are default, {', '.join(list(NUMBERS)[1:])}, of all of a "
                "head's numbers. Use another model."
            )
    given: dict[str, Any] = {ours: said.get(theirs) for ours, theirs in NUMBERS[kind].items()}
    if kind in ("llama3", "yarn"):
        given["original"] = config.get(ORIGINAL) or given["original"] or T
    if kind == "dynamic":
        given["original"] = T
    if kind == "yarn":
        given["factor"] = given["factor"] or T / given["original"]
        given["attention"] = given["attention"] or _attention(given["factor"], said)
    return {"rope_theta": float(theta), "rope_scaling": _text(kind, given)}


def written(c: ModelConfig) -> dict[str, Any]:
    """The keys of config.json, in the older form, which every version reads."""
    s = c.scaling
    out: dict[str, Any] = {"rope_theta": c.rope_theta, "rope_scaling": None}
    if s.kind == "none":
        return out
    numbers = {theirs: getattr(s, ours) for ours, theirs in NUMBERS[s.kind].items()}
    if ORIGINAL in numbers:
        numbers[ORIGINAL] = int(numbers[ORIGINAL])
    given = {theirs: value for theirs, value in numbers.items() if value}
    out |= {"rope_scaling": {"rope_type": s.kind, **given}}
    if s.kind == "dynamic":  # theirs grows with a row beyond this length
        out |= {"max_position_embeddings": int(s.original)}
    return out


def _text(kind: str, numbers: dict[str, Any]) -> str:
    """With the usual values of what is not said, so that equal scalings are equal texts."""
    said = ",".join(f"{name}={float(v)!r}" for name, v in numbers.items() if v is not None)
    whole = RopeScaling.parse(f"{kind}:{said}")._asdict().items()
    said = ",".join(f"{name}={value!r}" for name, value in whole if value and name != "kind")
    return f"{kind}:{said}" if said else kind


def _attention(factor: float, said: dict) -> float | None:
    """YaRN's temperature where it is given by two mscales; None: the usual one."""
    one, other = said.get("mscale"), said.get("mscale_all_dim")
    if not one or not other:
        return None
    return (0.1 * one * log(factor) + 1.0) / (0.1 * other * log(factor) + 1.0)
