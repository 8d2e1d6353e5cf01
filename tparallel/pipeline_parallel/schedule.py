"""A schedule: for every stage the order of its computations, and nothing else.

The model is cut into *chunks* of consecutive layers; ``placement[chunk]`` is the stage that holds
it (chunk i on stage i for the schedules here; several chunks per stage where they interleave).
Messages are not written here: ``program.py`` derives them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import LayoutError

F = "F"  # forward
B = "B"  # backward, gradient of the input: what the stage before waits for
W = "W"  # backward, gradient of the weights: what only the optimizer waits for
BW = "BW"  # both halves at once


class Action(NamedTuple):
    op: str
    chunk: int
    microbatch: int


@dataclass(frozen=True)
class Schedule:
    name: str
    microbatches: int
    placement: tuple[int, ...]  # chunk -> stage
    orders: tuple[tuple[Action, ...], ...]  # stage -> its computations, in order

    @property
    def stages(self) -> int:
        return len(self.orders)


def gpipe(stage: int, S: int, M: int) -> list[Action]:
    """All forwards, then all backwards: M micro-batches are in flight on every stage.

    Source: Huang et al. 2019, figure 2c.
    """
    return [Action(F, stage, m) for m in range(M)] + [Action(BW, stage, m) for m in range(M)]


def one_f_one_b(stage: int, S: int, M: int) -> list[Action]:
    """Fill the pipeline, then one forward, one backward: at most S − stage are in flight.

    Source: Narayanan et al. 2021, section 2.2.1 (PipeDream-Flush).
    """
    ahead = min(S - 1 - stage, M)  # forwards before the first backward
    order = [Action(F, stage, m) for m in range(ahead)]
    for m in range(M - ahead):
        order += [Action(F, stage, ahead + m), Action(BW, stage, m)]
    return order + [Action(BW, stage, m) for m in range(M - ahead, M)]


SCHEDULES: dict[str, Callable[[int, int, int], list[Action]]] = {
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
}


def make(name: str, S: int, M: int) -> Schedule:
    """The schedule of that name for S stages and M micro-batches; one stage needs no name."""
    if S > 1 and name not in SCHEDULES:
        raise LayoutError(
            f"schedule is not one that is known: schedule = {name}. "
            f"Use schedule {' or '.join(SCHEDULES)}."
        )
    rule = SCHEDULES.get(name, one_f_one_b)
    orders = tuple(tuple(rule(stage, S, M)) for stage in range(S))
    return Schedule(name, M, tuple(range(S)), orders)


def forward_only(S: int, M: int) -> Schedule:
    """For evaluation."""
    orders = tuple(tuple(Action(F, stage, m) for m in range(M)) for stage in range(S))
    return Schedule("forward", M, tuple(range(S)), orders)


def peak_in_flight(order) -> int:
    """The most micro-batches whose caches a stage holds at once."""
    held = peak = 0
    for action in order:
        held += {F: 1, BW: -1, W: -1}.get(action.op, 0)
        peak = max(peak, held)
    return peak
