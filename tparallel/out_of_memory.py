"""When memory is full: who asked for what, what holds the rest, and the ways out.

One rank runs out, not all; the others wait for it inside MPI and are ended with it.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from .compare.memory import nbytes
from .errors import OutOfMemoryError

MB = 1e6


def explained(method: Callable) -> Callable:
    """The same method of a ``Trainer``; a MemoryError, NumPy's or CuPy's, becomes ours."""

    @wraps(method)
    def call(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(trainer, *args, **kwargs)
        except MemoryError as e:
            raise OutOfMemoryError(text(trainer, e)) from None

    return call


def text(trainer: Any, error: MemoryError) -> str:
    """The error's words, what this rank holds, and what would make it less."""
    held = ", ".join(f"{what} {size / MB:,.1f} MB" for what, size in holds(trainer).items() if size)
    return (
        f"memory must hold a rank's part of the step; {where(trainer)} has run out: {error} It "
        f"holds {held or 'no parameters yet'}; the rest are temporary arrays, buffers of messages "
        f"and gaps. Use {'; or '.join(ways_out(trainer))}."
    )


def where(trainer: Any) -> str:
    """``rank 3 of 4 (dp 1, pp 0, tp 1)``."""
    if not (mesh := getattr(trainer, "mesh", None)):
        return "this rank"
    place = ", ".join(f"{axis} {number}" for axis, number in mesh.coords._asdict().items())
    return f"rank {mesh.comm.rank} of {mesh.comm.size} ({place})"


def holds(trainer: Any) -> dict[str, int]:
    """{what: bytes}, of what outlives a layer."""
    found: dict[str, int] = {}
    if store := getattr(trainer, "store", None):
        found["parameters"] = nbytes(store.params)
        found["gradients"] = nbytes(store.grads, store.local)
        found["optimizer state"] = nbytes(store.optimizer.state)
    if executor := getattr(trainer, "executor", None):
        caches = [getattr(executor, name, {}) for name in ("caches", "wcaches", "x", "dy")]
        found["activations"] = nbytes(*caches)
    return found


def ways_out(trainer: Any) -> list[str]:
    """At least three that this layout has not taken, the cheapest first."""
    layout, rows = trainer.layout, trainer.layout.rows(trainer.train.global_batch)
    ways = []
    if rows > 1:
        fewer = layout.microbatches * 2
        ways.append(f"--microbatches {fewer}: fewer rows at once, {rows} now")
    if layout.recompute != "full":
        ways.append("--recompute full: activations are made again in backward")
    if layout.dp > 1 and layout.zero < 3:
        ways.append(f"--zero {layout.zero + 1}: the dp ranks share what each now holds")
    if not layout.offload:
        ways.append("--offload: the optimizer's state elsewhere")
    ways.append("more ranks in --tp or --pp: each holds less of the model")
    ways.append("a smaller model or --dtype bfloat16")
    return ways[:4]
