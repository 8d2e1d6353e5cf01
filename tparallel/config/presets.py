"""Architectures and published models by name: what ``--model`` takes.

``gpt2``, ``llama`` and ``qwen2`` alone are architectures, with the default sizes of a small model.
The others are the values of each model's published config.json; T is the length that it was made
for, and every value can be given another (``--model smollm2-135m --L 2 --T 512``).
"""

from typing import Any

from ..errors import ConfigError
from .model import ModelConfig

LLAMA = {"norm": "rmsnorm", "position": "rope", "mlp": "swiglu", "bias": "none"}
QWEN2 = LLAMA | {"bias": "qkv", "norm_eps": 1e-6, "rope_theta": 1e6}
GPT2 = {"V": 50257, "T": 1024, "tied": True}
LLAMA3 = LLAMA | {"V": 128256, "T": 131072, "Hkv": 8, "rope_theta": 5e5}
SMOLLM2 = LLAMA | {"V": 49152, "T": 8192, "tied": True, "rope_theta": 1e5}
QWEN25 = QWEN2 | {"V": 151936, "tied": True, "Hkv": 2}
LONGER_8, LONGER_32 = (
    {"rope_scaling": f"llama3:factor={n},low=1,high=4,original=8192"} for n in (8, 32)
)

PRESETS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": LLAMA,
    "qwen2": QWEN2,
    "gpt2-124m": GPT2 | {"L": 12, "D": 768, "H": 12},
    "gpt2-355m": GPT2 | {"L": 24, "D": 1024, "H": 16},
    "gpt2-774m": GPT2 | {"L": 36, "D": 1280, "H": 20},
    "gpt2-1.5b": GPT2 | {"L": 48, "D": 1600, "H": 25},
    "smollm2-135m": SMOLLM2 | {"L": 30, "D": 576, "H": 9, "Hkv": 3, "F": 1536},
    "smollm2-360m": SMOLLM2 | {"L": 32, "D": 960, "H": 15, "Hkv": 5, "F": 2560},
    "smollm2-1.7b": SMOLLM2 | {"L": 24, "D": 2048, "H": 32, "F": 8192, "rope_theta": 1.3e5},
    "tinyllama-1.1b": LLAMA
    | {"V": 32000, "T": 2048, "L": 22, "D": 2048, "H": 32, "Hkv": 4}
    | {"F": 5632},
    "llama-3.2-1b": LLAMA3 | LONGER_32 | {"L": 16, "D": 2048, "H": 32, "F": 8192, "tied": True},
    "llama-3.2-3b": LLAMA3 | LONGER_32 | {"L": 28, "D": 3072, "H": 24, "F": 8192, "tied": True},
    "llama-3.1-8b": LLAMA3 | LONGER_8 | {"L": 32, "D": 4096, "H": 32, "F": 14336},
    "qwen2.5-0.5b": QWEN25 | {"L": 24, "D": 896, "H": 14, "F": 4864, "T": 32768},
    "qwen2.5-1.5b": QWEN25 | {"L": 28, "D": 1536, "H": 12, "F": 8960, "T": 131072},
}


def preset(name: str, **values: Any) -> ModelConfig:
    """The model of that name, with some values of its own.  Errors: ConfigError for other names."""
    if name not in PRESETS:
        raise ConfigError(
            f"model is not one that is known: model = {name}. Use one of {', '.join(PRESETS)}."
        )
    return ModelConfig(**{**PRESETS[name], **values})
