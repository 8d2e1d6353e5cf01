"""Train one layout for real, and take down what each rank holds, sends and waits for.

All ranks start the clock of a step together, behind a barrier that is not part of the step.
``Own`` is what one rank has seen; ``summary`` puts all ranks' together on rank 0.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from ..backend import synchronize
from ..config import Layout, ModelConfig, TrainConfig
from ..predict.wire import axes
from ..train import Trainer
from .asleep import meet
from .memory import Watch, nbytes, pool_peak

WARM_UP = 2  # steps that are not timed


@dataclass
class Own:
    """One rank's view.  Lists have one entry for each step; times are in seconds."""

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)  # inside the verbs of comm/axis.py
    busy: list[float] = field(default_factory=list)  # inside forward and backward computations
    span: list[float] = field(default_factory=list)  # to the end of the last computation
    wire: dict[str, int] = field(default_factory=dict)  # bytes sent in a step
    held: dict[str, int] = field(default_factory=dict)  # bytes
    pool_peak: int | None = None  # bytes of the device's pool at its fullest; None on NumPy


def measure(
    model: ModelConfig,
    train: TrainConfig,
    layout: Layout,
    comm: Any,
    batch: Callable[[int], tuple],
    tick: Callable[[], Any] = lambda: None,
) -> list[Own] | None:
    """Every rank's view of ``train.steps`` steps, on rank 0 (None elsewhere).

    ``batch(step)`` gives tokens and targets (G, T); ``tick()`` is called after every step.
    """
    trainer, own = Trainer(model, train, layout, comm), Own()
    for step in range(train.steps):
        rows = batch(step)
        trainer.mesh.ledger.clear()
        meet(comm)
        if step == 0:
            _first_step(trainer, rows, own)
        else:
            _timed_step(trainer, step, rows, own)
        sent = {axis: trainer.mesh.ledger.wire(axis) for axis in axes(layout)}
        if own.wire and sent != own.wire:
            raise RuntimeError(f"{layout.name}: step {step} sent {sent}, the one before {own.wire}")
        own.wire = sent
        tick()
    trainer.close()
    return comm.gather(own)


def _first_step(trainer: Trainer, rows: tuple, own: Own) -> None:
    """``Trainer.step``, with somebody who looks at the memory; its time is not counted."""
    with pool_peak() as peak:
        with Watch(trainer.store) as watch:
            tokens, targets = rows
            loss, norm = trainer.store.totals(trainer.forward_backward(tokens, targets, watch))
        secondary = nbytes(trainer.store.moves.secondary)
        trainer.store.update(0, norm)
    own.pool_peak = next(iter(peak), None)
    own.losses.append(loss)
    store = trainer.store
    own.held = {
        "params": nbytes(store.params),
        "grads": nbytes(store.grads),
        "optimizer": nbytes(store.optimizer.state),
        "activations_peak": watch.activations_peak,
        "gathered_peak": watch.gathered_peak,
    }
    if trainer.layout.secondary:
        own.held["secondary"] = secondary


def _timed_step(trainer: Trainer, step: int, rows: tuple, own: Own) -> None:
    start = time.perf_counter()
    own.losses.append(trainer.step(step, *rows)[0])
    synchronize()
    own.seconds.append(time.perf_counter() - start)
    own.waited.append(trainer.mesh.ledger.seconds)
    own.busy.append(sum(done.end - done.start for done in trainer.timeline))
    own.span.append(trainer.timeline[-1].end - start)


def times(ranks: list[Own], layout: Layout, tokens: int) -> dict:
    """Medians over the timed steps; ``tokens`` is the size of the global batch.

    step_seconds     of the slowest rank
    wait_fraction    per rank: time inside the verbs / time of the step
    bubble_measured  1 − Σ busy / (ranks × makespan), from the start of the step to the end of the
                     last computation of any stage; None at pp = 1.  A computation's own messages
                     (sums over tp, ZeRO 3's gathers) count as busy
    """
    skip = WARM_UP - 1  # the first step is not in the lists
    seconds, waited, busy, span = (
        list(zip(*(getattr(own, name)[skip:] for own in ranks)))  # [step][rank]
        for name in ("seconds", "waited", "busy", "span")
    )
    step = median(max(s) for s in seconds)
    idle = [1 - sum(b) / (len(b) * max(s)) for b, s in zip(busy, span)]
    return {
        "step_seconds": step,
        "tokens_per_second": tokens / step,
        "wait_fraction": [sum(w) / sum(s) for w, s in zip(zip(*waited), zip(*seconds))],
        "bubble_measured": median(idle) if layout.pp > 1 else None,
    }
