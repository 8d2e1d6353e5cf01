"""One case: train it on the ranks, train it on one process, and compare everything."""

from typing import Any, NamedTuple

from ..errors import ConfigError
from ..train import Trainer
from ..zero.norm import totals
from .bounds import bound
from .cases import Case
from .reference import batches, serial
from .seen import Seen, errors


class Answer(NamedTuple):
    """The error of one quantity, what it may be, and where it is largest."""

    error: float
    bound: float
    where: str = ""

    @property
    def holds(self) -> bool:
        return self.error <= self.bound


def measure(comm: Any, case: Case) -> dict[str, Answer]:
    """{quantity: answer} on rank 0, {} elsewhere.  Every rank of ``comm`` must call it."""
    found = run(comm, case)
    return compare(case, found, serial(case.model, case.train)) if found else {}


def compare(case: Case, found: Seen, truth: Seen) -> dict[str, Answer]:
    if 0 < truth.norm <= case.train.clip:
        raise ConfigError(
            f"a case with clipping must clip: the first norm is {truth.norm:.3g}, "
            f"clip = {case.train.clip}. Use a smaller clip, or clip = 0."
        )
    return {
        quantity: Answer(error, bound(quantity, case.model, case.train), where)
        for quantity, (error, where) in errors(found, truth).items()
    }


def run(comm: Any, case: Case) -> Seen | None:
    """What the layout shows, on its ranks (None but on rank 0)."""
    trainer = Trainer(case.model, case.train, case.layout, comm)
    try:
        return look(trainer, batches(case.model, case.train))
    finally:
        trainer.close()


def look(trainer: Trainer, rows: list[tuple]) -> Seen | None:
    """Train on all but the last of ``rows`` and see everything there is to compare."""
    share = trainer.forward_backward(*rows[0])
    gradients = trainer.grads()
    loss, norm = totals(trainer.store, share)
    trainer.store.update(0, norm)
    for step, row in enumerate(rows[1:-1], start=1):
        trainer.step(step, *row)
    parameters, state = trainer.params(), trainer.moments()
    validation = trainer.evaluate(*rows[-1])
    if gradients is None or parameters is None or state is None:
        return None
    return Seen(loss, gradients, norm, parameters, state, validation)
