"""Refuse what cannot run, before any message exists: the reason, and the drawn schedule with the
offending cells marked.

``validate``         a schedule: every micro-batch once, in order, nobody waits for ever
``validate_memory``  a schedule: no stage holds more activations than allowed
(``messages.py`` does the same for programs, message by message.)
"""

import numpy as np

from ..errors import ScheduleError
from .draw import grid
from .schedule import BW, NAMES, B, F, Schedule, W, in_flight
from .simulate import simulate

Cell = tuple[int, int]  # stage, place in its order


def validate(schedule: Schedule) -> None:
    """Raises ScheduleError unless every stage can run its order to the end."""
    place = _places(schedule)
    _check_complete(schedule, place)
    _check_order(schedule, place)
    _check_progress(schedule)


def validate_memory(schedule: Schedule, limit: int) -> None:
    """Raises ScheduleError if a stage holds more than ``limit`` activations at once."""
    for stage, order in enumerate(schedule.orders):
        held = in_flight(order)
        if held.max(initial=0) > limit:
            k = int(np.argmax(held > limit))
            raise refusal(
                schedule,
                [(stage, k)],
                f"a stage may hold {limit} activations: with {schedule.actions(stage)[k]} stage "
                f"{stage} holds {held[k]}. Run a backward before it, or allow more.",
            )


def refusal(schedule: Schedule, cells: list[Cell], reason: str) -> ScheduleError:
    return ScheduleError(f"{reason}\n\n{grid(schedule, cells)}")


def _places(schedule: Schedule) -> np.ndarray:
    """(4, chunks, micro-batches): where in its stage's order each action stands, -1 if nowhere."""
    C, M = schedule.chunks, schedule.microbatches
    place = np.full((4, C, M), -1)
    where = np.array(schedule.placement)
    for stage, order in enumerate(schedule.orders):
        op, chunk, m = order.T
        bad = np.flatnonzero(where[chunk] != stage)
        if len(bad):
            k = int(bad[0])
            raise refusal(
                schedule,
                [(stage, k)],
                f"a chunk runs on the stage that holds it: {schedule.actions(stage)[k]} stands on "
                f"stage {stage}, chunk {chunk[k]} lives on stage {where[chunk[k]]}. Move it there.",
            )
        place[op, chunk, m] = np.arange(len(order))
        again = np.flatnonzero(place[op, chunk, m] != np.arange(len(order)))
        if len(again):
            k = int(place[tuple(order[again[0]])])
            raise refusal(
                schedule,
                [(stage, int(again[0])), (stage, k)],
                f"an action is done once: {schedule.actions(stage)[k]} stands twice on stage "
                f"{stage}. Leave one away.",
            )
    return place


def _check_complete(schedule: Schedule, place: np.ndarray) -> None:
    """One forward of everything; and, if there is any backward, both its halves or the whole."""
    here = place >= 0
    _refuse_missing(schedule, F, ~here[F], "the activation", +1, place)
    if not here[B:].any():
        return
    twice = np.argwhere(here[BW] & (here[B] | here[W]))
    if len(twice):
        chunk, m = twice[0].tolist()
        cells = [_cell(schedule, place, op, chunk, m) for op in (BW, B, W) if here[op, chunk, m]]
        raise refusal(
            schedule,
            cells,
            f"backward is joined or in halves, not both: {chunk}BW{m} stands beside "
            f"{chunk}{'B' if here[B, chunk, m] else 'W'}{m}. Leave one away.",
        )
    _refuse_missing(schedule, B, ~here[BW] & ~here[B], "the gradient", -1, place)
    lost = np.argwhere(here[B] & ~here[W])
    if len(lost):
        chunk, m = lost[0].tolist()
        raise refusal(
            schedule,
            [_cell(schedule, place, B, chunk, m)],
            f"a weight gradient follows its input gradient: {chunk}B{m} has no {chunk}W{m}. Add "
            f"{chunk}W{m}, or write {chunk}BW{m}.",
        )


def _refuse_missing(
    schedule: Schedule, op: int, missing: np.ndarray, what: str, to: int, place: np.ndarray
) -> None:
    """Names who would wait for the message that nobody sends."""
    if not missing.any():
        return
    chunk, m = np.argwhere(missing)[0].tolist()
    stage, waits = schedule.placement[chunk], chunk + to
    cells = [(stage, len(schedule.orders[stage]))]
    said = f"stage {stage} never runs {chunk}{NAMES[op]}{m}"
    needed_by = next((o for o in ((F,) if op == F else (B, BW)) if _has(place, o, waits, m)), None)
    if needed_by is not None:
        cells.append(_cell(schedule, place, needed_by, waits, m))
        said = (
            f"stage {schedule.placement[waits]} waits at {waits}{NAMES[needed_by]}{m} for {what} "
            f"of micro-batch {m}, which stage {stage} never sends: it has no {chunk}{NAMES[op]}{m}"
        )
    raise refusal(
        schedule,
        cells,
        f"every chunk runs every micro-batch: {said}. Add it.",
    )


def _check_order(schedule: Schedule, place: np.ndarray) -> None:
    for first, second in ((F, B), (F, BW), (B, W)):
        wrong = np.argwhere((place[second] >= 0) & (place[first] > place[second]))
        if len(wrong):
            chunk, m = wrong[0].tolist()
            a, b = (f"{chunk}{NAMES[op]}{m}" for op in (first, second))
            raise refusal(
                schedule,
                [_cell(schedule, place, op, chunk, m) for op in (second, first)],
                f"{NAMES[second]} comes after {NAMES[first]}: stage {schedule.placement[chunk]} "
                f"runs {b} before {a}. Exchange them.",
            )
    lonely = np.argwhere((place[W] >= 0) & (place[B] < 0))
    if len(lonely):
        chunk, m = lonely[0].tolist()
        raise refusal(
            schedule,
            [_cell(schedule, place, W, chunk, m)],
            f"W comes after B: stage {schedule.placement[chunk]} has {chunk}W{m}, but no "
            f"{chunk}B{m}. Add it, or write {chunk}BW{m} for both.",
        )


def _check_progress(schedule: Schedule) -> None:
    """Follow who waits for whom until somebody comes a second time: nobody on the way can move."""
    start = simulate(schedule).start
    stuck = {s: int(np.isnan(t).argmax()) for s, t in enumerate(start) if np.isnan(t).any()}
    if not stuck:
        return
    chain = [min(stuck)]
    while chain.count(chain[-1]) < 2:
        chain.append(_waits_for(schedule, chain[-1], stuck)[1])
    cycle = chain[chain.index(chain[-1]) : -1]
    waits = [_waits_for(schedule, stage, stuck)[0] for stage in cycle]
    raise refusal(
        schedule,
        [(stage, stuck[stage]) for stage in cycle],
        f"somebody must be able to go on; these wait in a circle: {'; '.join(waits)}. Reorder the "
        "marked stages.",
    )


def _waits_for(schedule: Schedule, stage: int, stuck: dict[int, int]) -> tuple[str, int]:
    """What a stage waits for, and which stage that would come from."""
    op, chunk, _ = here = schedule.actions(stage)[stuck[stage]]
    what, whom = (
        ("activation", schedule.placement[chunk - 1])
        if op == F
        else ("gradient", schedule.placement[chunk + 1])
    )
    return f"stage {stage} waits at {here} for the {what} from stage {whom}", whom


def _has(place: np.ndarray, op: int, chunk: int, m: int) -> bool:
    return 0 <= chunk < place.shape[1] and place[op, chunk, m] >= 0


def _cell(schedule: Schedule, place: np.ndarray, op: int, chunk: int, m: int) -> Cell:
    return schedule.placement[chunk], int(place[op, chunk, m])
