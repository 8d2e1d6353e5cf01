"""How it is trained: batch, optimizer, numbers."""

from dataclasses import dataclass
from importlib.util import find_spec

from ..errors import ConfigError
from .rules import at_least, one_of


@dataclass(frozen=True)
class TrainConfig:
    """Batch, optimizer and numbers.  ``global_batch`` counts sequences of T tokens."""

    steps: int = 20
    global_batch: int = 8
    optimizer: str = "adamw"
    lr: float = 3e-3
    warmup: int = 10
    min_lr: float = 0.1  # the cosine ends at min_lr · lr
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0  # 0: no clipping
    dropout: float = 0.0  # the share of elements that are dropped at each site
    seed: int = 0
    dtype: str = "float32"  # bfloat16, float16: kept and sent in half, computed in float32
    activations: str = ""  # bfloat16: activations too are kept and moved in half (on a GPU)
    loss_scale: float = 65536.0  # float16: what small gradients are multiplied by at the start
    scale_window: int = 1000  # float16: good steps in a row before the loss scale is doubled
    init: str = "gpt2"

    def __post_init__(self):
        one_of("optimizer", self.optimizer, ("adamw", "sgd"))
        one_of("dtype", self.dtype, ("float32", "float64", "bfloat16", "float16"))
        if self.dtype == "bfloat16" and find_spec("ml_dtypes") is None:
            raise ConfigError(
                "bfloat16 needs the package ml_dtypes: it is not installed. "
                "Install the extra half, or use float16 or float32."
            )
        if self.activations:
            one_of("activations", self.activations, ("bfloat16",))
        if self.activations and self.dtype != self.activations:
            raise ConfigError(
                "activations in bfloat16 meet parameters in bfloat16: activations = "
                f"{self.activations}, dtype = {self.dtype}. Use dtype bfloat16, or leave "
                "activations out."
            )
        one_of("init", self.init, ("gpt2", "random"))
        for f in ("steps", "global_batch", "loss_scale", "scale_window"):
            at_least(1, f, getattr(self, f), ConfigError)
        for f in ("seed", "warmup"):
            at_least(0, f, getattr(self, f), ConfigError)
        for f in ("lr", "clip", "weight_decay", "min_lr", "eps"):
            if not getattr(self, f) >= 0:
                raise ConfigError(
                    f"{f} must not be negative: {f} = {getattr(self, f)}. Use 0 for none."
                )
        for f, usual in (("beta1", 0.9), ("beta2", 0.95), ("dropout", 0.1)):
            if not 0 <= getattr(self, f) < 1:
                raise ConfigError(
                    f"{f} must lie in [0, 1): {f} = {getattr(self, f)}. Use {f} = {usual}."
                )

    @property
    def is_half(self) -> bool:
        """Are parameters and gradients kept in 2 bytes, beside float32 master weights?"""
        return self.dtype in ("bfloat16", "float16")

    @property
    def master_dtype(self) -> str:
        """The dtype of master weights, moments and sums that need their digits."""
        return "float32" if self.is_half else self.dtype

    @property
    def compute_dtype(self) -> str:
        """The dtype of activations: what a layer is given, keeps and returns."""
        return self.activations or self.master_dtype
