"""Train a trainer some steps; what a training of it has then made."""

from layout_cases import batch

from tparallel.train import Trainer

TEXT = {"sha256": "none"}


def train(trainer: Trainer, start: int, stop: int) -> None:
    for step in range(start, stop):
        trainer.step(step, *batch(trainer.model, trainer.train, step))


def whole(trainer: Trainer) -> list[dict]:
    """Parameters, and moments where there are any, whole, on rank 0; elsewhere nothing."""
    found = [trainer.params(), *(trainer.moments() or ())]
    return found if trainer.mesh.comm.rank == 0 else []
