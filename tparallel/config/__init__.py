"""What is trained, how it is split, how it is trained: three frozen dataclasses.

Each checks itself when it is made, so that a wrong value is an error before the first message,
the same on every rank, from a pure function of the configuration.

``model`` (with ``scaling``, of rotary positions), ``presets`` (published models by name),
``train``, ``layout``, ``fit`` (do the three go together?)
"""

from dataclasses import asdict, replace

from .fit import check
from .layout import Layout
from .model import ModelConfig
from .presets import PRESETS, preset
from .train import TrainConfig


def as_dict(config: ModelConfig | TrainConfig | Layout) -> dict:
    """A config as plain values, for JSON."""
    return asdict(config)


__all__ = [
    "PRESETS",
    "Layout",
    "ModelConfig",
    "TrainConfig",
    "as_dict",
    "check",
    "preset",
    "replace",
]
