"""The transformer that is trained: its sizes, and which architecture it is."""

from dataclasses import dataclass

from ..errors import ConfigError
from .rules import at_least, nearest, one_of
from .scaling import RopeScaling


@dataclass(frozen=True)
class ModelConfig:
    """The transformer's sizes, by the letters that the whole code uses, and its architecture.

    The defaults are GPT-2's architecture; ``config/presets.py`` has others and published models.
    """

    L: int = 4
    D: int = 128
    H: int = 4
    T: int = 128
    V: int = 256
    F: int = 0  # 0: 4 D
    Hkv: int = 0  # key/value heads; 0: H of them
    K: int = 0  # head size; 0: D / H
    tied: bool = False
    norm: str = "layernorm"
    norm_eps: float = 1e-5
    position: str = "learned"  # a table of T vectors, or "rope": q and k are turned by angles
    rope_theta: float = 10000.0
    rope_scaling: str = "none"  # e.g. "llama3:factor=32,original=8192": config/scaling.py
    mlp: str = "gelu"
    bias: str = "all"  # of linear layers: all | qkv | none

    def __post_init__(self):
        if not self.F:
            object.__setattr__(self, "F", 4 * self.D)
        if not self.Hkv:
            object.__setattr__(self, "Hkv", self.H)
        for f in ("L", "D", "H", "T", "V", "F", "Hkv"):
            at_least(1, f, getattr(self, f), ConfigError)
        at_least(0, "K", self.K, ConfigError)
        if not self.K:
            object.__setattr__(self, "K", self._head_size())
        if self.H % self.Hkv:
            raise ConfigError(
                f"Hkv must divide H, each key/value head serves as many query heads: H = {self.H}, "
                f"Hkv = {self.Hkv}. Use Hkv = {nearest(self.H, self.Hkv)}."
            )
        one_of("norm", self.norm, ("layernorm", "rmsnorm"))
        one_of("position", self.position, ("learned", "rope"))
        one_of("mlp", self.mlp, ("gelu", "swiglu"))
        one_of("bias", self.bias, ("all", "qkv", "none"))
        for f, usual in (("norm_eps", "0.00001"), ("rope_theta", "10000.0")):
            if not getattr(self, f) > 0:
                raise ConfigError(
                    f"{f} must be positive: {f} = {getattr(self, f)}. Use {f} = {usual}."
                )
        self._check_rope()

    def _head_size(self) -> int:
        if self.D % self.H:
            raise ConfigError(
                f"H must divide D where K, the head size, is not given: D = {self.D}, "
                f"H = {self.H}. Use H = {nearest(self.D, self.H)}, or K = {-(-self.D // self.H)}."
            )
        return self.D // self.H

    def _check_rope(self) -> None:
        scaling = RopeScaling.parse(self.rope_scaling)
        if self.position == "rope" and self.K % 2:
            raise ConfigError(
                f"rope turns pairs of numbers, so the head size must be even: K = {self.K}. "
                f"Use K = {self.K + 1}, or position learned."
            )
        if self.position != "rope" and scaling.kind != "none":
            raise ConfigError(
                "rope_scaling is about rotary positions: rope_scaling = "
                f"{self.rope_scaling}, position = {self.position}. Use position rope, or "
                "rope_scaling none."
            )

    def __str__(self) -> str:
        """``L 4  D 128 ...``: the sizes, and what differs from GPT-2's architecture."""
        sizes = [f"{letter} {getattr(self, letter)}" for letter in "LDHTVF"]
        sizes += [f"Hkv {self.Hkv}"] * (self.Hkv != self.H)
        sizes += [f"K {self.K}"] * (self.K * self.H != self.D)
        kinds = [getattr(self, f) for f in ("norm", "position", "mlp") if self._differs(f)]
        kinds += [f"{self.bias} bias"] * self._differs("bias") + ["tied"] * self.tied
        return "  ".join(sizes + kinds)

    def _differs(self, field: str) -> bool:
        return getattr(self, field) != ModelConfig.__dataclass_fields__[field].default

    @property
    def scaling(self) -> RopeScaling:
        """What ``rope_scaling`` says."""
        return RopeScaling.parse(self.rope_scaling)
