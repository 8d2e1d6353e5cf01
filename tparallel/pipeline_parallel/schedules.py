"""The schedules of the field.  Each is a pure function of S stages, M micro-batches (and v chunks
per stage) to a placement and, for every stage, an order of computations.

``F, B, W`` are the forward and the two halves of backward of one micro-batch by one chunk.
"Ahead" is the number of forwards that a stage runs before its first backward; "late" is the
number of micro-batches by which a weight gradient waits behind its input gradient.
"""

from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple

from ..errors import LayoutError
from .schedule import BW, B, F, Schedule, W, schedule_of
from .text import read
from .validate import validate


def naive(S: int, M: int) -> Schedule:
    """One micro-batch at a time goes down and comes back; one stage works, the others wait.

    Source: Huang et al. 2019, figure 2b
    """
    order = [(op, m) for m in range(M) for op in (F, BW)]
    return _one_chunk_each("naive", S, M, lambda stage: order)


def gpipe(S: int, M: int) -> Schedule:
    """All forwards, then all backwards: M micro-batches are in flight on every stage.

    Source: Huang et al. 2019, figure 2c
    """
    order = [(op, m) for op in (F, BW) for m in range(M)]
    return _one_chunk_each("gpipe", S, M, lambda stage: order)


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

    return _one_chunk_each("1f1b", S, M, order)


def zb_h1(S: int, M: int) -> Schedule:
    """1F1B whose weight gradients wait until there is nothing else to do: a third of the bubble,
    and S activations in flight on every stage.

    Source: Qi et al. 2023, section 2.2, figure 2
    """
    return _one_chunk_each("zb-h1", S, M, lambda s: _halves(M, ahead=S - 1 - s, late=s))


def zb_h2(S: int, M: int) -> Schedule:
    """Twice as far ahead and twice as late: no bubble where F = B = W, for 2 S − 1 in flight.

    Source: Qi et al. 2023, section 2.3, figure 3
    """
    return _one_chunk_each("zb-h2", S, M, lambda s: _halves(M, ahead=2 * (S - 1 - s), late=2 * s))


def _halves(M: int, ahead: int, late: int) -> list[tuple]:
    """Some forwards ahead, then F B W in turn, the W ``late`` micro-batches behind the B."""
    order = [(F, m) for m in range(min(ahead, M))]
    for m in range(M + late):
        order += [(F, ahead + m)] * (ahead + m < M) + [(B, m)] * (m < M)
        order += [(W, m - late)] * (0 <= m - late < M)
    return order


def _one_chunk_each(name: str, S: int, M: int, order_of: Callable) -> Schedule:
    """Chunk i on stage i."""
    orders = [[(op, stage, m) for op, m in order_of(stage)] for stage in range(S)]
    return schedule_of(name, M, range(S), orders)


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


def zb_v(S: int, M: int) -> Schedule:
    """Two chunks per stage, folded into a V: the stage that begins a micro-batch also ends it.
    No bubble where F = B = W, in the memory of 1F1B's first stage, on every stage.

    Source: Qi et al. 2023, section 6
    """
    N = max(M, 2 * S - 1)  # what fills the pipeline

    def order(s):
        down, up = s, 2 * S - 1 - s
        return _phases(
            (2 * (S - s) - 1, [(F, down)]),
            (s, [(F, up), (F, down)]),
            (S - s, [(F, up), (B, up), W]),
            (N - 2 * S + 1 + s, [(F, down), (B, down), W, (F, up), (B, up), W]),
            (S - 1 - s, [(B, down), W, (F, up), (B, up), W]),
            (s, [(B, down), (B, up)]),
            (S - s, [(B, down), W]),
            (2 * s, [W]),
        )

    return schedule_of("zb-v", M, _folded(S), map(order, range(S)))


def dualpipe_v(S: int, M: int) -> Schedule:
    """The V of ``zb_v``, run as pairs of one forward and one whole backward of the other arm, so
    that the messages of one can hide behind the other; halves apart only where they fill a bubble.

    Source: DeepSeek-AI 2024, section 3.2.1 (DualPipe); DualPipeV halves it: one set of parameters
    """
    N = max(M, 2 * S)  # what fills the pipeline

    def order(s):
        down, up = s, 2 * S - 1 - s
        half, odd = divmod(s + 1, 2)
        return _phases(
            (2 * (S - 1 - s), [(F, down)]),
            (s + 1, [(F, down), (F, up)]),
            (S - 1 - s, [(B, up), W, (F, up)]),
            (N - 2 * S + s + 1, [(F, down), (BW, up), (F, up), (BW, down)]),
            (S - 1 - s, [(BW, up), (F, up), (BW, down)]),
            (half, [(BW, up), (BW, down)]),
            (odd, [(BW, up), (B, down)]),
            (half, [(B, up), (B, down)]),
            (S - 1 - s, [W, (B, down)]),
            (s + 1, [W]),
        )

    return schedule_of("dualpipe-v", M, _folded(S), map(order, range(S)))


def _folded(S: int) -> list[int]:
    """Down the stages and up again: 0, 1, ..., S − 1, S − 1, ..., 1, 0."""
    return [*range(S), *reversed(range(S))]


def _phases(*phases: tuple[int, list]) -> list[tuple]:
    """(times, pattern) after (times, pattern).  In a pattern, (operation, chunk) takes that
    chunk's next micro-batch, and W the oldest input gradient whose weight gradient is missing."""
    done: Counter = Counter()
    waiting: deque = deque()
    out = []
    for times, pattern in phases:
        for step in pattern * times:
            if step == W:
                out.append((W, *waiting.popleft()))
                continue
            op, chunk = step
            m = done[op == F, chunk]
            done[op == F, chunk] += 1
            out.append((op, chunk, m))
            if op == B:
                waiting.append((chunk, m))
    return out


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
