"""When each action of a schedule starts and ends: planned by ``simulate``, or ``measured``."""

from dataclasses import dataclass

import numpy as np

from .schedule import BW, B, F, Schedule, W


@dataclass(frozen=True, eq=False)
class Timeline:
    schedule: Schedule
    start: tuple[np.ndarray, ...]  # stage -> (actions,), in the schedule's order
    end: tuple[np.ndarray, ...]
    measured: bool = False

    @property
    def makespan(self) -> float:
        """From the first action of any stage to the last."""
        return max(float(e[-1]) for e in self.end if len(e)) - self.begin

    @property
    def begin(self) -> float:
        return min(float(s[0]) for s in self.start if len(s))

    @property
    def span(self) -> float:
        """The longest that one stage takes from its first action to its last: what an endless row
        of steps costs each, if no stage waits for the others between them."""
        return max(float(e[-1] - s[0]) for s, e in zip(self.start, self.end) if len(s))

    @property
    def busy(self) -> np.ndarray:
        """(stages,): the time that each stage computes."""
        return np.array([float((e - s).sum()) for s, e in zip(self.start, self.end)])

    @property
    def bubble(self) -> float:
        """The share of all stages' time in which they compute nothing."""
        return 1 - float(self.busy.sum()) / (len(self.busy) * self.makespan)


def critical_path(timeline: Timeline) -> list[tuple[int, int]]:
    """The chain of actions (stage, place in its order) that sets a planned makespan, first to
    last: each begins when the one before it ends or when its message arrives."""
    schedule = timeline.schedule
    made_by: dict[tuple | None, tuple[int, int]] = {}  # result -> (stage, place)
    for stage in range(schedule.stages):
        for k, (op, chunk, m) in enumerate(schedule.orders[stage].tolist()):
            if op != W:
                made_by[op != F, chunk, m] = stage, k
    stage = max(range(schedule.stages), key=lambda s: timeline.end[s][-1:].max(initial=0))
    at = (stage, len(timeline.end[stage]) - 1)
    path = [at]
    while True:
        stage, k = at
        op, chunk, m = schedule.orders[stage][k].tolist()
        needs = {F: (False, chunk - 1, m), B: (True, chunk + 1, m), BW: (True, chunk + 1, m)}
        message = made_by.get(needs.get(op))
        waits = k == 0 or timeline.start[stage][k] > timeline.end[stage][k - 1]
        if waits and message is None:
            return path[::-1]
        at = message if waits and message else (stage, k - 1)
        path.append(at)
