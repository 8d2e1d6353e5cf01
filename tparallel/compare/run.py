"""The whole comparison on the ranks that were started: for each layout the proof, then the run.

A layout with fewer ranks than were started runs on the first ones, and the rest sleep.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from mpi4py import MPI

from .. import launch
from ..backend import free_unused
from ..comm.transport import cores
from ..config import Layout, ModelConfig, TrainConfig, check
from ..serial.context import context
from ..serial.train import initial_params, train_step, zeros_like
from .asleep import meet
from .measure import Own, measure
from .progress import Silent
from .proof import Proof, Reference, prove, reference

NAP = 1e-3  # seconds between two looks of a rank that has nothing to do


class Outcome(NamedTuple):
    """What rank 0 knows about a layout when it is done."""

    proof: Proof
    ranks: list[Own]
    crowded: bool  # more ranks than cores: its times say little
    seconds: float


class Task(NamedTuple):
    """What to compare: the same on every rank."""

    model: ModelConfig
    train: TrainConfig
    layouts: dict[str, Layout]  # by name
    batch: Callable  # step -> tokens, targets (G, T)

    def check(self, ranks: int) -> None:
        """Every layout must fit before the first one runs.  Raises LayoutError."""
        for layout in self.layouts.values():
            check(self.model, self.train, layout, None if layout.ranks <= ranks else ranks)


def compare(world: Any, task: Task, show: Silent) -> tuple[list[float], dict[str, Outcome]] | None:
    """Serial's loss curve and the outcome of every layout, on rank 0 (None elsewhere).

    ``show`` is told how far the work is (``progress.py``).
    """
    truth, curve = None, []
    if world.rank == 0:
        show.begin("serial, the reference")
        truth = reference(task.model, task.train, *task.batch(0))
        curve = serial_curve(task, show.tick)
    meet(world, NAP)
    outcomes = {}
    for name, layout in task.layouts.items():
        show.begin(name)
        launch.at(f"layout {name}")
        free_unused()
        part = world.Split(0 if world.rank < layout.ranks else MPI.UNDEFINED, world.rank)
        if part != MPI.COMM_NULL:
            outcome = _one(part, task, layout, truth, show.tick)
            part.Free()
            if outcome:
                outcomes[name] = outcome
        meet(world, NAP)
    return (curve, outcomes) if world.rank == 0 else None


def _one(
    comm: Any, task: Task, layout: Layout, truth: Reference | None, tick: Callable
) -> Outcome | None:
    start = time.perf_counter()
    proof = prove(task.model, task.train, layout, comm, task.batch(0), truth)
    ranks = measure(task.model, task.train, layout, comm, task.batch, tick)
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    crowded = comm.allreduce(node.size > cores(), MPI.LOR)
    node.Free()
    if proof is None or ranks is None:
        return None
    return Outcome(proof, ranks, crowded, time.perf_counter() - start)


def serial_curve(task: Task, tick: Callable[[], Any]) -> list[float]:
    """The losses of serial/train.py's own loop, the global batch in one piece."""
    params = initial_params(task.model, task.train)
    at = context(task.model, task.train.master_dtype)
    moments, losses = (zeros_like(params), zeros_like(params)), []
    for step in range(task.train.steps):
        tokens, targets = task.batch(step)
        loss, _ = train_step(params, moments, tokens, targets, step, task.train, at=at)
        losses.append(loss)
        tick()
    return losses
