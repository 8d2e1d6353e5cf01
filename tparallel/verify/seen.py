"""What one run shows, and how far two runs are apart.

Gradients are compared *before* any optimizer has seen them: AdamW divides by their size, so that
no comparison after it can see a factor.
"""

from typing import NamedTuple

from ..compare.equality import relative_error, worst_error

QUANTITIES = ("loss", "gradients", "norm", "parameters", "optimizer state", "validation loss")


class Seen(NamedTuple):
    """Of the first batch: loss, gradients, their norm before clipping.  After the last step:
    parameters, optimizer state (m, v), and the loss of a further batch.  Whole, on the host."""

    loss: float
    gradients: dict
    norm: float
    parameters: dict
    optimizer_state: tuple
    validation_loss: float


def errors(found: Seen, truth: Seen) -> dict[str, tuple[float, str]]:
    """{quantity: (error, the tensor where it is largest)}; no optimizer state under SGD."""
    out = {
        "loss": (relative_error(found.loss, truth.loss), ""),
        "gradients": worst_error(found.gradients, truth.gradients),
        "norm": (relative_error(found.norm, truth.norm), ""),
        "parameters": worst_error(found.parameters, truth.parameters),
    }
    if found.optimizer_state:
        both = zip("mv", found.optimizer_state, truth.optimizer_state)
        error, where, name = max((*worst_error(a, b), name) for name, a, b in both)
        out["optimizer state"] = error, f"{name} of {where}"
    return out | {"validation loss": (_relative(found, truth), "")}


def _relative(found: Seen, truth: Seen) -> float:
    return relative_error(found.validation_loss, truth.validation_loss)
