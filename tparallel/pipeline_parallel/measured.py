"""What really happened: the times of all ranks on one clock, as a ``Timeline`` like a planned one.

Every rank reads its own clock, and on several hosts these do not agree.  ``clock_offset`` finds
how far a rank's clock is from rank 0's: in the fastest of some exchanges rank 0 answered half way
between question and answer.

Source: Cristian 1989, section 3 (the offset and its error: half of the exchange's time)
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from .schedule import BW, B, F
from .simulate import COST
from .timeline import Timeline

ROUNDS = 20


def clock_offset(comm: Any, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds to add to this rank's clock to read rank 0's.  Every rank of ``comm`` calls it."""
    offset = 0.0
    for rank in range(1, comm.size):
        if comm.rank == 0:
            for _ in range(ROUNDS):
                comm.recv(source=rank)
                comm.send(clock(), rank)
        elif comm.rank == rank:
            best = np.inf
            for _ in range(ROUNDS):
                asked = clock()
                comm.send(None, 0)
                said = comm.recv(source=0)
                answered = clock()
                if answered - asked < best:
                    best, offset = answered - asked, said - (asked + answered) / 2
        comm.Barrier()
    return offset


def steps(trainer: Any, warm_up: int, count: int) -> list[Timeline]:
    """Some passes of a trainer over random tokens, measured; on rank 0, none on other ranks."""
    G, T, V = trainer.train.global_batch, trainer.model.T, trainer.model.V
    rng = np.random.default_rng(0)
    offset, out = clock_offset(trainer.mesh.comm), []
    for _ in range(warm_up + count):
        tokens, targets = rng.integers(0, V, (2, G, T))
        trainer.mesh.comm.Barrier()
        trainer.forward_backward(tokens, targets)
        out.append(gathered(trainer, offset))
    return [timeline for timeline in out[warm_up:] if timeline is not None]


def gathered(trainer: Any, offset: float) -> Timeline | None:
    """The trainer's last step, of its first pipeline, on rank 0's clock; None on other ranks."""
    mine = np.array([(done.start, done.end) for done in trainer.timeline]).reshape(-1, 2) + offset
    parts = trainer.mesh.comm.gather((trainer.mesh.coords, mine))
    if parts is None:
        return None
    times = [t for _, t in sorted((at.pp, t) for at, t in parts if (at.dp, at.tp) == (0, 0))]
    return Timeline(
        trainer.schedule, tuple(t[:, 0] for t in times), tuple(t[:, 1] for t in times), True
    )


def action_times(timeline: Timeline) -> dict[int, np.ndarray]:
    """{operation: (chunks, micro-batches)}: the seconds of every action (NaN: there is none)."""
    schedule = timeline.schedule
    took = np.full((len(COST), schedule.chunks, schedule.microbatches), np.nan)
    for stage, order in enumerate(schedule.orders):
        took[tuple(order.T)] = timeline.end[stage] - timeline.start[stage]
    return dict(enumerate(took))


def costs(timelines: list[Timeline]) -> dict[int, np.ndarray]:
    """{operation: (chunks, 1)}: medians over steps and micro-batches, to plan with."""
    each = [action_times(timeline) for timeline in timelines]
    return {
        op: np.nanmedian([times[op] for times in each], axis=(0, 2))[:, None]
        for op in COST
        if not np.isnan(each[0][op]).all()
    }


def delays(timelines: list[Timeline]) -> np.ndarray:
    """(chunks − 1,): seconds from the end of an action to the start of the one that waited for its
    message, by boundary between chunks: medians.  Only a stage that waited tells the time."""
    schedule = timelines[0].schedule
    seen: list[list[float]] = [[] for _ in range(schedule.chunks - 1)]
    for timeline in timelines:
        ends = action_times(timeline)  # the same shape, to be filled with ends
        for stage, order in enumerate(schedule.orders):
            for (op, chunk, m), end in zip(order.tolist(), timeline.end[stage].tolist()):
                ends[op][chunk, m] = end
        made = {F: ends[F], B: np.fmax(ends[B], ends[BW])}
        for stage, order in enumerate(schedule.orders):
            free = -np.inf
            for (op, chunk, m), start, end in zip(
                order.tolist(), timeline.start[stage].tolist(), timeline.end[stage].tolist()
            ):
                step = {F: -1, B: +1, BW: +1}.get(op, 0)
                if step and 0 <= chunk + step < schedule.chunks:
                    ready = made[F if op == F else B][chunk + step, m]
                    if free < ready and schedule.placement[chunk + step] != stage:
                        seen[min(chunk, chunk + step)].append(start - ready)
                free = end
    return np.array([np.median(times) if times else 0.0 for times in seen])
