"""Run every stage's program in virtual time, before any message exists.

A receive waits for its message; a send posts it and goes on (``buffered``), or waits until the
receiver stands at the receive (not ``buffered``: what a large message does to a blocking send).
What never finishes is a deadlock, and is reported stage by stage.
"""

from typing import NamedTuple

from ..errors import ScheduleError
from .program import Instruction, partner, programs
from .schedule import BW, B, F, Schedule, W

COST = {F: 1.0, B: 1.0, W: 1.0, BW: 2.0}  # backward does two products for each one of forward


class Event(NamedTuple):
    stage: int
    instruction: Instruction
    start: float
    end: float


def simulate(schedule: Schedule, cost=COST, delay: float = 0.0, buffered: bool = True):
    """The events of all stages; ``cost`` per operation and ``delay`` per message, in any unit."""
    todo = programs(schedule)
    check(schedule, todo)
    at, clock = [0] * len(todo), [0.0] * len(todo)
    sent: dict = {}
    events: list[Event] = []
    moved = True
    while moved:
        moved = False
        for stage, program in enumerate(todo):
            while at[stage] < len(program):
                i = program[at[stage]]
                start = clock[stage]
                if i.op.startswith("recv"):
                    arrival = sent.get((stage, *i[:3]))
                    if arrival is None:
                        break
                    start = max(start, arrival)
                elif i.op.startswith("send"):
                    meets = partner(i, stage)
                    if not buffered and not _stands_at(todo, at, meets):
                        break
                    sent[meets] = start + delay
                clock[stage] = start + cost.get(i.op, 0.0)
                events.append(Event(stage, i, start, clock[stage]))
                at[stage] += 1
                moved = True
    stuck = [s for s, program in enumerate(todo) if at[s] < len(program)]
    if stuck:
        waits = "; ".join(f"stage {s} waits at {_text(todo[s][at[s]])}" for s in stuck)
        raise ScheduleError(
            f"every stage must finish; schedule {schedule.name} deadlocks: {waits}. "
            + ("Reorder the stages that wait." if buffered else "Post the sends and go on (Isend).")
        )
    return events


def check(schedule: Schedule, todo) -> None:
    """Each chunk's every micro-batch: forward once, then backward once, both halves, in order."""
    for stage, program in enumerate(todo):
        done: dict[tuple[int, int], str] = {}
        for i in program:
            if i.op in COST:
                _check_place(schedule, stage, i)
                _check_order(schedule, stage, i, done)
                done[i.chunk, i.microbatch] = done.get((i.chunk, i.microbatch), "") + i.op
    forward_only = all(i.op not in (B, BW, W) for program in todo for i in program)
    for chunk, stage in enumerate(schedule.placement):
        for m in range(schedule.microbatches):
            found = sum(i[:3] == (F, chunk, m) for i in todo[stage])
            back = sum(i.op in (W, BW) and i[1:3] == (chunk, m) for i in todo[stage])
            if found != 1 or back != (0 if forward_only else 1):
                raise ScheduleError(
                    "every micro-batch goes forward and backward once: stage "
                    f"{stage} does micro-batch {m} of chunk {chunk} {found} and {back} times. "
                    "Add what is missing."
                )


def _check_place(schedule: Schedule, stage: int, i: Instruction) -> None:
    chunks, M = len(schedule.placement), schedule.microbatches
    if not (0 <= i.chunk < chunks and 0 <= i.microbatch < M):
        raise ScheduleError(
            f"a schedule does what there is to do: {_text(i)} of chunk {i.chunk} on stage {stage}, "
            f"with {chunks} chunks and {M} micro-batches. Leave it out."
        )
    if schedule.placement[i.chunk] != stage:
        raise ScheduleError(
            f"a chunk runs where it is placed: {_text(i)} stands on stage {stage}, chunk "
            f"{i.chunk} on stage {schedule.placement[i.chunk]}. Move the action."
        )


def _check_order(schedule: Schedule, stage: int, i: Instruction, done: dict) -> None:
    """Within a micro-batch of a chunk, and between neighbouring chunks of one stage (between
    stages, the messages see to it)."""
    before = done.get((i.chunk, i.microbatch), "")
    if i.op not in {"": (F,), F: (B, BW), F + B: (W,)}.get(before, ()):
        raise ScheduleError(
            "a micro-batch goes F, then B and W or both at once: on stage "
            f"{stage}, {_text(i)} comes after '{before or 'nothing'}'. Reorder the stage."
        )
    needs, from_chunk = {F: (F, i.chunk - 1), W: ("", -1)}.get(i.op, (B, i.chunk + 1))
    local = 0 <= from_chunk < len(schedule.placement) and schedule.placement[from_chunk] == stage
    if local and needs not in done.get((from_chunk, i.microbatch), ""):
        raise ScheduleError(
            f"a chunk's input comes from its neighbour: on stage {stage}, {_text(i)} of chunk "
            f"{i.chunk} comes before that of chunk {from_chunk}. Reorder the stage."
        )


def makespan(events: list[Event]) -> float:
    return max(e.end for e in events)


def bubble(events: list[Event], S: int) -> float:
    """The share of S × makespan in which a stage computes nothing."""
    busy = sum(e.end - e.start for e in events)
    return 1 - busy / (S * makespan(events))


def _stands_at(todo, at, meets) -> bool:
    stage, *rest = meets
    return at[stage] < len(todo[stage]) and list(todo[stage][at[stage]][:3]) == rest


def _text(i: Instruction) -> str:
    return f"{i.op} {i.microbatch}"
