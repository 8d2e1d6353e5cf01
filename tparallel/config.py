"""What is trained, how it is split, how it is trained: three frozen dataclasses.

Each checks itself when it is made, so that a wrong value is an error before the first message,
the same on every rank, from a pure function of the configuration.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from importlib.util import find_spec
from typing import Any

from .errors import ConfigError, LayoutError, TParallelError
from .pipeline_parallel.schedules import make

OPTIONS = (
    "sp",
    "recompute",
    "overlap",
    "bucket_bytes",
    "reduce_each",
    "shard_group",
    "secondary",
    "quantise",
    "offload",
)


@dataclass(frozen=True)
class ModelConfig:
    """The transformer's sizes, by the letters that the whole code uses."""

    L: int = 4
    D: int = 128
    H: int = 4
    T: int = 128
    V: int = 256
    F: int = 0  # 0: 4 D
    Hkv: int = 0  # key/value heads; 0: H of them
    tied: bool = False

    def __post_init__(self):
        if not self.F:
            object.__setattr__(self, "F", 4 * self.D)
        if not self.Hkv:
            object.__setattr__(self, "Hkv", self.H)
        for f in ("L", "D", "H", "T", "V", "F", "Hkv"):
            _at_least(1, f, getattr(self, f), ConfigError)
        if self.D % self.H:
            raise ConfigError(
                f"H must divide D: D = {self.D}, H = {self.H}. Use H = {_nearest(self.D, self.H)}."
            )
        if self.H % self.Hkv:
            raise ConfigError(
                f"Hkv must divide H, each key/value head serves as many query heads: H = {self.H}, "
                f"Hkv = {self.Hkv}. Use Hkv = {_nearest(self.H, self.Hkv)}."
            )

    @property
    def K(self) -> int:
        """Head size."""
        return self.D // self.H


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
    loss_scale: float = 65536.0  # float16: what small gradients are multiplied by at the start
    scale_window: int = 1000  # float16: good steps in a row before the loss scale is doubled
    init: str = "gpt2"

    def __post_init__(self):
        _one_of("optimizer", self.optimizer, ("adamw", "sgd"))
        _one_of("dtype", self.dtype, ("float32", "float64", "bfloat16", "float16"))
        if self.dtype == "bfloat16" and find_spec("ml_dtypes") is None:
            raise ConfigError(
                "bfloat16 needs the package ml_dtypes: it is not installed. "
                "Install the extra half, or use float16 or float32."
            )
        _one_of("init", self.init, ("gpt2", "random"))
        for f in ("steps", "global_batch", "loss_scale", "scale_window"):
            _at_least(1, f, getattr(self, f), ConfigError)
        for f in ("seed", "warmup"):
            _at_least(0, f, getattr(self, f), ConfigError)
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
    def compute_dtype(self) -> str:
        """The dtype of activations and of all arithmetic."""
        return "float32" if self.is_half else self.dtype


@dataclass(frozen=True)
class Layout:
    """How the work is split: tp × pp × dp ranks, a ZeRO stage, a pipeline schedule.

    ``schedule`` is a name or a text file; ``microbatches`` (M) is the number into which each
    data-parallel rank cuts its rows; ``chunks`` the parts of the model that a stage holds (0: as
    many as the schedule needs); ``cut`` says what the parts have in common, blocks or cost.
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    zero: int = 0
    schedule: str = ""  # "": 1f1b where pp > 1
    microbatches: int = 1
    chunks: int = 0
    cut: str = "even"  # or "cost": pipeline_parallel/stage.py
    sp: str = ""  # sequence parallelism: "keep" or "regather" the gathered input for backward
    recompute: str = "none"  # in backward: none | selective (attention's T × T) | full (the block)
    overlap: bool = True  # sums over tp, gradients and parameters travel while layers compute
    bucket_bytes: int = 0  # join layers into messages of at most this size; 0: a layer each
    reduce_each: str = "microbatch"  # zero 2, 3: or "step": add whole gradients up locally first
    shard_group: int = 0  # zero: cut over groups of this many dp ranks, copies across; 0: over all
    secondary: bool = False  # zero 3: cut over all of dp, and a copy of the parameters per group
    quantise: str = ""  # zero 3: "weights" (8 bits), "grads" (4 bits) or "both", on the wire
    offload: bool = False  # the optimizer's state outside of the parameters' memory

    def __post_init__(self):
        for axis in ("tp", "pp", "dp", "microbatches"):
            _at_least(1, axis, getattr(self, axis), LayoutError)
        _at_least(0, "chunks", self.chunks, LayoutError)
        _one_of("cut", self.cut, ("even", "cost"), LayoutError)
        if self.zero not in (0, 1, 2, 3):
            raise LayoutError(f"ZeRO has four stages: zero = {self.zero}. Use zero 0, 1, 2 or 3.")
        if self.zero and self.dp == 1:
            raise LayoutError(
                f"ZeRO partitions over data-parallel ranks: zero = {self.zero}, dp = 1 has nobody "
                "to share with. Use dp of 2 or more, or zero = 0."
            )
        _one_of("reduce_each", self.reduce_each, ("microbatch", "step"), LayoutError)
        _at_least(0, "bucket_bytes", self.bucket_bytes, LayoutError)
        self._check_shard_group()
        self._check_zero_plus_plus()
        if self.schedule and self.pp == 1:
            raise LayoutError(
                f"a schedule orders pipeline stages: schedule = {self.schedule}, pp = 1 has one. "
                "Use pp of 2 or more, or no schedule."
            )
        _one_of("sp", self.sp, ("keep", "regather", ""), LayoutError)
        if self.sp and self.tp == 1:
            raise LayoutError(
                f"sequence parallelism cuts T over tp: sp = {self.sp}, tp = 1 has nobody to share "
                "with. Use tp of 2 or more, or no sp."
            )
        _one_of("recompute", self.recompute, ("none", "selective", "full"), LayoutError)
        if not self.schedule and self.pp > 1:
            object.__setattr__(self, "schedule", "1f1b")

    def _check_zero_plus_plus(self) -> None:
        if self.quantise:
            _one_of("quantise", self.quantise, ("weights", "grads", "both"), LayoutError)
        if (self.quantise or self.secondary) and self.zero < 3:
            raise LayoutError(
                f"quantise and secondary are about gathered parameters: zero = {self.zero} gathers "
                "none. Use zero = 3."
            )
        if self.secondary and not self.shard_group:
            raise LayoutError(
                "a secondary copy is one per shard group: shard_group = 0 makes no groups. "
                "Use shard_group of 2 or more."
            )

    def _check_shard_group(self) -> None:
        group, fitting = self.shard_group, [n for n in _divisors(self.dp) if n > 1]
        if group and not self.zero:
            raise LayoutError(
                f"a shard group needs something sharded: shard_group = {group}, zero = 0. "
                "Use zero 1, 2 or 3, or shard_group = 0."
            )
        if group and group not in fitting:
            raise LayoutError(
                f"shard groups of at least two ranks must fill dp: dp = {self.dp}, "
                f"shard_group = {group}. Use shard_group {_either(fitting)}."
            )

    @property
    def ranks(self) -> int:
        return self.tp * self.pp * self.dp

    @property
    def name(self) -> str:
        """``tp=2 dp=2 zero=1``: what differs from one process; ``serial`` if nothing does."""
        parts = [f"{a}={getattr(self, a)}" for a in ("tp", "pp", "dp") if getattr(self, a) > 1]
        if self.pp > 1:
            parts.append(self.schedule)
            parts += [f"chunks={self.chunks}"] * (self.chunks > 0)
            parts += [f"cut={self.cut}"] * (self.cut != "even")
        if self.dp > 1:
            parts.append(f"zero={self.zero}")
        for f in OPTIONS:
            value = getattr(self, f)
            if value != Layout.__dataclass_fields__[f].default:
                parts.append(f"{f}={value if isinstance(value, str) else int(value)}")
        return " ".join(parts) or "serial"

    def rows(self, global_batch: int) -> int:
        """B, the sequences of one micro-batch on one rank."""
        return global_batch // (self.dp * self.microbatches)

    @staticmethod
    def parse(text: str, **defaults) -> "Layout":
        """``"tp=2,pp=2,schedule=gpipe,microbatches=4"`` -> Layout."""
        values: dict = {}
        known = [f.name for f in fields(Layout)]
        for part in text.split(","):
            key, equals, value = (word.strip() for word in part.partition("="))
            if not equals or key not in known:
                raise LayoutError(
                    f"a layout is key=value pairs of {', '.join(known)}: {part!r} is not one. "
                    "Example: tp=2,dp=2,zero=2"
                )
            if key in values:
                raise LayoutError(f"a layout names each key once: {text!r}. Leave one {key} away.")
            kind: Any = type(Layout.__dataclass_fields__[key].default)
            values[key] = value if kind is str else kind(_whole(key, value))
        return Layout(**{**defaults, **values})


def check(model: ModelConfig, train: TrainConfig, layout: Layout, ranks: int | None = None) -> None:
    """Does the layout fit the model, the batch and the number of ranks?  Raises LayoutError."""
    tp, pp, dp, M = layout.tp, layout.pp, layout.dp, layout.microbatches
    fitting = [n for n in _divisors(model.H) if model.F % n == 0 and n <= model.V]
    fitting = [n for n in fitting if model.Hkv % n == 0 or n % model.Hkv == 0]
    for letter, what in (("H", "the number of heads"), ("F", "the feed-forward size")):
        size = getattr(model, letter)
        if size % tp:
            raise LayoutError(
                f"tp must divide {what}: {letter} = {size}, tp = {tp}. Use tp {_either(fitting)}."
            )
    if model.Hkv % tp and tp % model.Hkv:
        raise LayoutError(
            f"tp must divide the key/value heads, or they it: Hkv = {model.Hkv}, tp = {tp}. "
            f"Use tp {_either(fitting)}."
        )
    if layout.sp and model.T % tp:
        raise LayoutError(
            f"tp must divide the sequence under sequence parallelism: T = {model.T}, tp = {tp}. "
            f"Use tp {_either(_divisors(model.T))}, or no sp."
        )
    if tp > model.V:
        raise LayoutError(
            f"every tp rank needs a row of the vocabulary: V = {model.V}, tp = {tp}. "
            f"Use tp {_either(fitting)}."
        )
    schedule = make(layout.schedule, pp, M, layout.chunks)
    if pp > model.L:
        raise LayoutError(
            f"every pipeline stage needs a block: L = {model.L}, pp = {pp}. "
            f"Use pp of at most {model.L}, or L = {pp}."
        )
    if schedule.chunks > model.L:
        raise LayoutError(
            f"every chunk of a pipeline needs a block: L = {model.L}, {layout.schedule} cuts the "
            f"model into {schedule.chunks} chunks. Use L of {schedule.chunks} or more, or "
            "fewer stages."
        )
    if train.global_batch % (dp * M):
        raise LayoutError(
            f"dp × microbatches must divide the global batch: dp = {dp}, microbatches = {M}, "
            f"global batch = {train.global_batch}. Use a global batch of {dp * M} or a multiple."
        )
    if ranks is not None and ranks != layout.ranks:
        raise LayoutError(
            f"tp × pp × dp = {tp} × {pp} × {dp} = {layout.ranks}, but mpirun started {ranks} "
            f"rank{'s' * (ranks > 1)}. Use mpirun -n {layout.ranks}" + _or_dp(ranks, layout) + "."
        )


def as_dict(config: ModelConfig | TrainConfig | Layout) -> dict:
    """A config as plain values, for JSON."""
    return asdict(config)


def _or_dp(ranks: int, layout: Layout) -> str:
    dp, rest = divmod(ranks, layout.tp * layout.pp)
    return f", or dp = {dp}" if rest == 0 and dp > (layout.zero > 0) else ""


def _at_least(least: int, name: str, value: int, error: type[TParallelError]) -> None:
    if value < least:
        raise error(
            f"{name} must be at least {least}: {name} = {value}. Use {name} of {least} or more."
        )


def _one_of(
    name: str, value: str, allowed: tuple[str, ...], error: type[TParallelError] = ConfigError
) -> None:
    if value not in allowed:
        named = [a or f"no {name}" for a in allowed]
        raise error(
            f"{name} is not one that is known: {name} = {value}. Use {name} {_either(named)}."
        )


def _whole(key: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise LayoutError(f"{key} must be a whole number: {key}={value}. Use {key}=2.") from None


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _either(choices: Iterable) -> str:
    """``2, 3 or 6``: the first eight."""
    *most, last = [str(c) for c in choices][:8]
    return f"{', '.join(most)} or {last}" if most else last


def _nearest(n: int, wanted: int) -> int:
    return min(_divisors(n), key=lambda d: abs(d - wanted))


__all__ = ["Layout", "ModelConfig", "TrainConfig", "as_dict", "check", "replace"]
