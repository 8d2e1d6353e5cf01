"""One step in float64, against serial: the loss and every gathered gradient.

The start is ``init="random"``, where no bias is zero and no gradient is hidden.  The reference is
``serial/train.py`` itself, on one rank, and not the parallel code at size 1.
"""

from typing import Any, NamedTuple

from ..config import Layout, ModelConfig, TrainConfig, replace
from ..serial.context import context
from ..serial.train import grad_norm, initial_params, loss_and_grads
from ..train import Trainer
from .equality import relative_error, worst_error

BOUND = 1e-12  # gradients agree to some 1e-15: a wrong term is never this small


class Reference(NamedTuple):
    loss: float
    norm: float
    grads: dict


class Proof(NamedTuple):
    """Errors relative to serial; the worst gradient by name."""

    loss: float
    norm: float
    gradient: float
    worst: str


def settings(train: TrainConfig) -> TrainConfig:
    return replace(train, dtype="float64", activations="", init="random")


def reference(model: ModelConfig, train: TrainConfig, tokens: Any, targets: Any) -> Reference:
    """What every layout must find."""
    train = settings(train)
    params, at = initial_params(model, train), context(model, train.compute_dtype)
    loss, grads = loss_and_grads(params, tokens, targets, at=at)
    return Reference(loss, grad_norm(grads), grads)


def prove(
    model: ModelConfig,
    train: TrainConfig,
    layout: Layout,
    comm: Any,
    batch: tuple,
    truth: Reference | None,
) -> Proof | None:
    """The layout's errors, on rank 0 (None elsewhere); ``truth`` is needed there only."""
    trainer = Trainer(model, settings(train), layout, comm)
    loss, norm = trainer.store.totals(trainer.forward_backward(*batch))
    grads = trainer.grads()
    trainer.close()
    if grads is None or truth is None:
        return None
    error, worst = worst_error(grads, truth.grads)
    return Proof(relative_error(loss, truth.loss), relative_error(norm, truth.norm), error, worst)
