"""What a bug does to the loss curve: fifty steps on real text, with it and without it."""

from typing import Any, NamedTuple

from .. import data
from ..config import ModelConfig, TrainConfig, replace
from ..train import Trainer
from ..verify.cases import configs
from .bugs import Bug
from .patch import applied

MODEL = {"L": 2, "D": 32, "H": 4, "T": 32, "V": 256}


class Moved(NamedTuple):
    """Last losses, and the largest relative distance of the two curves at any step."""

    healthy: float
    broken: float
    most: float


def curve(comm: Any, model: ModelConfig, train: TrainConfig, layout: Any) -> list[float]:
    """The loss of every step, the same on every rank."""
    text = data.load()
    trainer = Trainer(model, train, layout, comm)
    losses = []
    for step in range(train.steps):
        rows = text.batch(step, train.global_batch, model.T, train.seed)
        losses.append(trainer.step(step, *rows)[0])
    trainer.close()
    return losses


def moved(comm: Any, bug: Bug, steps: int) -> Moved:
    """With default training: AdamW, clipping at 1, float32."""
    case = configs({**MODEL, "steps": steps, **bug.layout})
    run = comm, case.model, case.train, case.layout
    healthy = curve(*run)
    with applied(bug.edits):
        broken = curve(*run)
    return _distance(healthy, broken)


def another_seed(comm: Any, steps: int) -> Moved:
    """The yardstick: how far apart two right runs are that begin with other numbers."""
    case = configs({**MODEL, "steps": steps})
    one = curve(comm, case.model, case.train, case.layout)
    other = curve(comm, case.model, replace(case.train, seed=1), case.layout)
    return _distance(one, other)


def _distance(healthy: list[float], broken: list[float]) -> Moved:
    most = max(abs(a - b) / a for a, b in zip(healthy, broken))
    return Moved(healthy[-1], broken[-1], most)
