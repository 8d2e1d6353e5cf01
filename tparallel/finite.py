"""A loss or a gradient is not finite: which tensor was the first, in which layer, on which rank?

Nothing is watched while all is well.  When the loss or the gradient norm of a step is NaN or
infinite, the parameters are still what they were: the same forward and backward are run once more,
this time with every layer's results looked at.

Communicates:  an allgather of what each rank has found
"""

from math import isfinite
from typing import Any

from .backend import xp
from .errors import NotFiniteError
from .serial.model import LayerFunctions
from .serial.parameters import layer_names

PARAMETER, FORWARD, BACKWARD = 0, 1, 2


def refuse(trainer: Any, step: int, loss: float, norm: float, tokens: Any, targets: Any) -> None:
    """Errors: NotFiniteError, the same on every rank, before the optimizer has seen anything.

    float16 is left alone while the loss is finite: it skips updates whose gradients overflow.
    """
    if isfinite(loss) and (isfinite(norm) or trainer.train.dtype == "float16"):
        return
    everyone = trainer.mesh.comm.allgather(_first(trainer, step, tokens, targets))
    found = [(*event, rank) for rank, event in enumerate(everyone) if event]
    text = f"step {step + 1}: loss {loss}, gradient norm {norm}"
    if found:
        *_, what, layer, rank = min(found, key=lambda event: (event[:2], event[-1]))
        text += f"; the first that is not finite: {what} of {layer}, on rank {rank}"
    raise NotFiniteError(text, loss, norm)


def _first(trainer: Any, step: int, tokens: Any, targets: Any) -> tuple | None:
    """(phase, place in it, what, layer): the first of this rank, in the order of computation."""
    events: list[tuple] = []
    order = {layer: i for i, layer in enumerate(layer_names(trainer.model.L))}
    chunks = trainer.executor.chunks.values()
    before = [chunk.functions for chunk in chunks]
    for chunk in chunks:
        chunk.functions = {
            layer: _watched(f, layer, order[layer], events) for layer, f in chunk.functions.items()
        }
    try:
        trainer.forward_backward(tokens, targets, step=step)
    finally:
        for chunk, functions in zip(chunks, before):
            chunk.functions = functions
    return min(events, default=None)


def _watched(f: LayerFunctions, layer: str, place: int, events: list[tuple]) -> LayerFunctions:
    """The same layer; results that are not finite, though what came in was, become events."""

    def look(phase: int, came: Any, **results: Any) -> None:
        if came is not None and not _all_finite(came):
            return
        for what, a in results.items():
            if a is not None and not _all_finite(a):
                events.append(
                    (phase, -place if phase == BACKWARD else place, what.replace("_", " "), layer)
                )

    def forward(x: Any, p: dict, **more: Any) -> Any:
        look(PARAMETER, None, **{f"parameter {name}": a for name, a in p.items()})
        y, cache = f.forward(x, p, **more)
        look(FORWARD, x, output=y)
        return y, cache

    def backward_input(dy: Any, cache: Any, p: dict) -> Any:
        dx, wcache = f.backward_input(dy, cache, p)
        look(BACKWARD, dy, gradient_of_the_input=dx)
        return dx, wcache

    def backward_weight(wcache: Any) -> Any:
        grads = f.backward_weight(wcache)
        look(BACKWARD, None, **{f"gradient of {name}": g for name, g in grads.items()})
        return grads

    def backward(dy: Any, cache: Any, p: dict) -> Any:
        dx, grads = f.backward(dy, cache, p)
        named = {f"gradient of {name}": g for name, g in grads.items()}
        look(BACKWARD, dy, gradient_of_the_input=dx, **named)
        return dx, grads

    return LayerFunctions(forward, backward_input, backward_weight, backward)


def _all_finite(a: Any) -> bool:
    return bool(xp.isfinite(a).all())
