"""How the work is split over ranks."""

from dataclasses import dataclass, fields
from typing import Any

from ..errors import LayoutError
from .rules import at_least, divisors, either, one_of, whole

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
            at_least(1, axis, getattr(self, axis), LayoutError)
        at_least(0, "chunks", self.chunks, LayoutError)
        one_of("cut", self.cut, ("even", "cost"), LayoutError)
        if self.zero not in (0, 1, 2, 3):
            raise LayoutError(f"ZeRO has four stages: zero = {self.zero}. Use zero 0, 1, 2 or 3.")
        if self.zero and self.dp == 1:
            raise LayoutError(
                f"ZeRO partitions over data-parallel ranks: zero = {self.zero}, dp = 1 has nobody "
                "to share with. Use dp of 2 or more, or zero = 0."
            )
        one_of("reduce_each", self.reduce_each, ("microbatch", "step"), LayoutError)
        at_least(0, "bucket_bytes", self.bucket_bytes, LayoutError)
        self._check_shard_group()
        self._check_zero_plus_plus()
        if self.schedule and self.pp == 1:
            raise LayoutError(
                f"a schedule orders pipeline stages: schedule = {self.schedule}, pp = 1 has one. "
                "Use pp of 2 or more, or no schedule."
            )
        one_of("sp", self.sp, ("keep", "regather", ""), LayoutError)
        if self.sp and self.tp == 1:
            raise LayoutError(
                f"sequence parallelism cuts T over tp: sp = {self.sp}, tp = 1 has nobody to share "
                "with. Use tp of 2 or more, or no sp."
            )
        one_of("recompute", self.recompute, ("none", "selective", "full"), LayoutError)
        if not self.schedule and self.pp > 1:
            object.__setattr__(self, "schedule", "1f1b")

    def _check_zero_plus_plus(self) -> None:
        if self.quantise:
            one_of("quantise", self.quantise, ("weights", "grads", "both"), LayoutError)
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
        group, fitting = self.shard_group, [n for n in divisors(self.dp) if n > 1]
        if group and not self.zero:
            raise LayoutError(
                f"a shard group needs something sharded: shard_group = {group}, zero = 0. "
                "Use zero 1, 2 or 3, or shard_group = 0."
            )
        if group and group not in fitting:
            raise LayoutError(
                f"shard groups of at least two ranks must fill dp: dp = {self.dp}, "
                f"shard_group = {group}. Use shard_group {either(fitting)}."
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
            values[key] = value if kind is str else kind(whole(key, value))
        return Layout(**{**defaults, **values})
