"""The schedules of the field.  Each is a pure function of S stages, M micro-batches (and v chunks
per stage) to a placement and, for every stage, an order of computations.

Here are those with a whole backward, the table of all, and ``make``; those that run its halves
apart are in ``zero_bubble.py``.  "Ahead" is the number of forwards that a stage runs before its
first backward.
"""

from collections.abc import Callable
from typing import NamedTuple

from ..errors import LayoutError
from .schedule import BW, F, Schedule, one_chunk_each, schedule_of
from .text import read
from .validate import validate
from .zero_bubble import dualpipe_v, zb_h1, zb_h2, zb_v


def naive(S: int, M: int) -> Schedule:
    """One micro-batch at a time goes down and comes back; one stage works, the others wait.

    Source: Huang et al. 2019, figure 2b
    """
    order = [(op, m) for m in range(M) for op in (F, BW)]
    return one_chunk_each("naive", S, M, lambda stage: order)


def gpipe(S: int, M: int) -> Schedule:
    """All forwards, then all backwards: M micro-batches are in flight on every stage.

    Source: Huang et al. 2019, figure 2c
    """
    order = [(op, m) for op in (F, BW) for m in range(M)]
    return one_chunk_each("gpipe", S, M, lambda stage: order)


def one_f_one_b(S: int, M: int) -> Schedule:
    """Fill the pipeline, then one forward, one backward: at most S − stage are in flight.

    Source: Narayanan et al. 2021, section 2.2.1 (PipeDream-Flush)
    """

    def order(stage):
        ahead = min(S - 1 - stage, M)
        out = [(F, m) for m in range(ahead)]
        for m in range(M - ahead):
            out += [(F, ahead + m), (BW, m)]
        return out + [(BW, m) for m in range(M - ahead, M)]

    return one_chunk_each("1f1b", S, M, order)


def interleaved(S: int, M: int, v: int) -> Schedule:
    """1F1B over v chunks per stage, chunk c on stage c mod S: a micro-batch goes round v times,
    S micro-batches at a time.  The bubble is v times smaller, the messages v times as many.

    Source: Narayanan et al. 2021, section 2.2.2, figure 4
    """
    rounds = -(-M // S)
    turns = [(r, j, i) for r in range(rounds) for j in range(v) for i in range(S)]

    def order(stage):
        forwards = [(F, j * S + stage, r * S + i) for r, j, i in turns]
        backwards = [(BW, (v - 1 - j) * S + stage, r * S + i) for r, j, i in turns]
        ahead = min(2 * (S - 1 - stage) + (v - 1) * S, len(turns))
        steady = [a for pair in zip(forwards[ahead:], backwards) for a in pair]
        return forwards[:ahead] + steady + backwards[len(turns) - ahead :]

    return schedule_of("interleaved", M, [c % S for c in range(v * S)], map(order, range(S)))


FILE = ".txt"


class Rule(NamedTuple):
    """A schedule's function, and how many chunks a stage holds (None: any number from two)."""

    make: Callable[..., Schedule]
    chunks: int | None = 1


SCHEDULES = {
    "naive": Rule(naive),
    "gpipe": Rule(gpipe),
    "1f1b": Rule(one_f_one_b),
    "interleaved": Rule(interleaved, chunks=None),
    "zb-h1": Rule(zb_h1),
    "zb-h2": Rule(zb_h2),
    "zb-v": Rule(zb_v, chunks=2),
    "dualpipe-v": Rule(dualpipe_v, chunks=2),
}


def make(name: str, S: int, M: int, chunks: int = 0) -> Schedule:
    """The schedule of that name, or of that file, for S stages and M micro-batches; one stage
    needs no name.  ``chunks`` per stage: 0 for what the schedule needs.

    Errors: LayoutError, or ScheduleError with the drawn schedule if a file's order cannot run
    """
    if name.endswith(FILE):
        return _from_file(name, S, M, chunks)
    if S > 1 and name not in SCHEDULES:
        *most, last = SCHEDULES
        raise LayoutError(
            f"schedule is not one that is known, nor a file that ends in {FILE}: schedule = {name}."
            f" Use schedule {', '.join(most)} or {last}."
        )
    rule = SCHEDULES.get(name, SCHEDULES["1f1b"])
    if rule.chunks and chunks not in (0, rule.chunks):
        raise LayoutError(
            f"{name or 'a model in one stage'} holds {rule.chunks} chunk{'s' * (rule.chunks > 1)} "
            f"per stage: chunks = {chunks}. Use chunks = {rule.chunks}."
        )
    if rule.chunks is None:
        if chunks == 1:
            raise LayoutError(
                f"{name} puts two chunks or more on a stage: chunks = 1. Use chunks = 2."
            )
        return rule.make(S, M, chunks or 2)
    return rule.make(S, M)


def _from_file(path: str, S: int, M: int, chunks: int) -> Schedule:
    schedule = read(path)
    asked, has = (S, M), (schedule.stages, schedule.microbatches)
    if asked != has:
        raise LayoutError(
            f"a schedule file is for one size: {path} has {has[0]} stages and {has[1]} "
            f"micro-batches, the layout {S} and {M}. Use pp = {has[0]}, microbatches = {has[1]}."
        )
    if chunks and chunks * S != schedule.chunks:
        raise LayoutError(
            f"a schedule file says how many chunks there are: {path} has {schedule.chunks} on "
            f"{S} stages, chunks = {chunks}. Leave chunks away."
        )
    validate(schedule)
    return schedule
