"""Every check of this project, put to one bug: which of them go red?

The bug is in force for the layout *and* for the serial program, as it would be in somebody's
repository: a bug in serial code is in both, and "parallel equals serial" stays green.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..compare.equality import worst_error
from ..errors import ReplicaError
from ..serial.context import context
from ..serial.train import initial_params, loss_and_grads
from ..train import Trainer
from ..verify import definition, replicas
from ..verify.cases import Case, case_of
from ..verify.measure import Answer, compare, look
from ..verify.reference import batches, serial, start
from .bugs import Bug
from .patch import applied

SMALL = {"optimizer": "adamw", "clip": 0.5, "T": 8}


def examine(comm: Any, bug: Bug) -> dict[str, Answer]:
    """{check: answer}, in the order in which one would ask, on rank 0 ({} elsewhere)."""
    case = case_of({**SMALL, **bug.layout})
    assert case is not None
    serial.cache_clear()
    try:
        with applied(bug.edits):
            answers = against_mathematics(case) if comm.rank == 0 else {}
            return answers | against_serial(comm, case)
    finally:
        serial.cache_clear()


def against_mathematics(case: Case) -> dict[str, Answer]:
    """Is the serial program right?  Its loss is the definition's, its gradients are slopes."""
    params, (tokens, targets) = start(case.model, case.train), batches(case.model, case.train)[0]
    at = context(case.model, case.train.dtype)
    loss, grads = loss_and_grads(params, tokens, targets, at=at)
    truth = definition.loss(case.model, params, tokens, targets)
    return {
        "definition": Answer(abs(loss - truth) / truth, 1e-12),
        "slopes": slopes(params, grads, lambda: loss_and_grads(params, tokens, targets, at=at)[0]),
    }


def slopes(params: dict, grads: dict, loss: Callable[[], float]) -> Answer:
    """Each tensor is moved along a random direction d: is (f(+h d) − f(−h d)) / 2h its g · d?"""
    h, rng, found = 1e-5, np.random.default_rng(0), {}
    for layer, p in params.items():
        for name, w in p.items():
            d, before, f = rng.choice((-1.0, 1.0), w.shape), w.copy(), []
            for sign in (1, -1):
                w[...] = before + sign * h * d
                f.append(loss())
            w[...] = before
            found[f"{layer}.{name}"] = (
                (f[0] - f[1]) / (2 * h),
                float((grads[layer][name] * d).sum()),
            )
    largest = max(abs(slope) for slope, _ in found.values())
    error, where = max(
        (abs(slope - ours) / max(abs(slope), 1e-2 * largest), name)
        for name, (slope, ours) in found.items()
    )
    return Answer(error, 1e-5, where)


def against_serial(comm: Any, case: Case) -> dict[str, Answer]:
    """Is the layout equal to the serial program, and are its replicas equal to each other?"""
    trainer, rows = (
        Trainer(case.model, case.train, case.layout, comm),
        batches(case.model, case.train),
    )
    try:
        first, found = trainer.params(), look(trainer, rows)
        drifted = _drifted(trainer)
    finally:
        trainer.close()
    if found is None or first is None:
        return {}
    begun = worst_error(first, initial_params(case.model, case.train))
    return {
        "start": Answer(begun[0], 0.0, begun[1]),
        **compare(case, found, serial(case.model, case.train)),
        "replicas": Answer(float("inf") if drifted else 0.0, 0.0, drifted),
    }


def _drifted(trainer: Any) -> str:
    try:
        replicas.check(trainer, trainer.train.steps - 1)
    except ReplicaError as e:
        return str(e)
    return ""
