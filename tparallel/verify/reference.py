"""The truth of a case: the same model on the same text, on one process, in float64."""

from functools import lru_cache

import numpy as np

from ..backend import xp
from ..config import ModelConfig, TrainConfig, replace
from ..serial.context import context
from ..serial.dropout import Dropout
from ..serial.loss import cross_entropy_forward
from ..serial.model import model_forward
from ..serial.train import initial_params, loss_and_grads, train_step, zeros_like
from .seen import Seen


@lru_cache(maxsize=64)
def serial(model: ModelConfig, train: TrainConfig) -> Seen:
    """What one process shows.  A float32 case is compared with float64, from the same start."""
    return train_serially(start(model, train), batches(model, train), model, train)


def start(model: ModelConfig, train: TrainConfig) -> dict:
    """The first parameters as the case's dtype rounds them, in float64."""
    return {
        layer: {name: a.astype("float64") for name, a in p.items()}
        for layer, p in initial_params(model, train).items()
    }


def batches(model: ModelConfig, train: TrainConfig) -> list[tuple]:
    """A global batch per step and one more, of random tokens: (G, T) each.  The first and the
    last id of the vocabulary are always among them, as tokens and as targets."""
    rng = np.random.default_rng(train.seed)
    rows = rng.integers(0, model.V, (train.steps + 1, train.global_batch, model.T + 1))
    rows[:, 0, :2], rows[:, -1, -2:] = 0, model.V - 1
    return [(part[:, :-1], part[:, 1:]) for part in rows]


def train_serially(params: dict, rows: list[tuple], model: ModelConfig, train: TrainConfig) -> Seen:
    """Train ``params``, in place, on all but the last of ``rows``."""
    train = replace(train, dtype="float64")
    moments = tuple(zeros_like(params) for _ in "mv")
    at = context(model, train.dtype)
    first = at._replace(drop=Dropout(train.dropout).of(train.seed, 0))
    tokens, targets = rows[0]
    _, gradients = loss_and_grads(params, tokens, targets, at=first)
    said = [
        train_step(params, moments, tokens, targets, step, train, at=at)
        for step, (tokens, targets) in enumerate(rows[:-1])
    ]
    tokens, targets = (xp.asarray(part) for part in rows[-1])
    logits, _ = model_forward(tokens, params, at)
    validation, _ = cross_entropy_forward(logits, targets, targets.size)
    state = moments if train.optimizer == "adamw" else ()
    return Seen(said[0][0], gradients, said[0][1], params, state, float(validation))
