"""A schedule: which stage holds which part of the model, and what every stage computes, in order.

The model is cut into *chunks* of consecutive layers; ``placement[chunk]`` is the stage that holds
it.  One chunk per stage is the plain pipeline; schedules that interleave or fold it have several.
Messages are not written here: ``program.py`` derives them.

An action is a row of three integers, (operation, chunk, micro-batch), and a stage's order an
array of such rows, so that a thousand stages with thousands of micro-batches can be simulated.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

F, B, W, BW = range(4)
NAMES = ("F", "B", "W", "BW")
MEANING = {
    F: "forward",
    B: "gradient of the input, which the chunk before waits for",
    W: "gradient of the weights, which only the optimizer waits for",
    BW: "backward, both halves at once",
}


class Action(NamedTuple):
    op: int
    chunk: int
    microbatch: int

    def __str__(self) -> str:
        return f"{self.chunk}{NAMES[self.op]}{self.microbatch}"


@dataclass(frozen=True, eq=False)
class Schedule:
    name: str
    microbatches: int
    placement: tuple[int, ...]  # chunk -> stage
    orders: tuple[np.ndarray, ...]  # stage -> (actions, 3): its computations, in order

    @property
    def stages(self) -> int:
        return len(self.orders)

    @property
    def chunks(self) -> int:
        return len(self.placement)

    def actions(self, stage: int) -> list[Action]:
        return [Action(*row) for row in self.orders[stage].tolist()]

    def chunks_of(self, stage: int) -> list[int]:
        return [chunk for chunk, at in enumerate(self.placement) if at == stage]

    def is_forward_only(self) -> bool:
        return all((order[:, 0] == F).all() for order in self.orders)


def schedule_of(name: str, M: int, placement: Iterable[int], orders: Iterable) -> Schedule:
    """``orders``: for every stage its actions, in anything that yields (op, chunk, micro-batch).
    Micro-batches from M on are left out: a rule may be written for a number that suits it."""
    arrays = []
    for order in orders:
        rows = np.array(order, np.int32).reshape(-1, 3)
        arrays.append(rows[rows[:, 2] < M])
    return Schedule(name, M, tuple(placement), tuple(arrays))


def one_chunk_each(name: str, S: int, M: int, order_of: Callable) -> Schedule:
    """Chunk i on stage i."""
    orders = [[(op, stage, m) for op, m in order_of(stage)] for stage in range(S)]
    return schedule_of(name, M, range(S), orders)


def forward_only(schedule: Schedule) -> Schedule:
    """The forwards of a schedule, in its own order: for evaluation."""
    orders = tuple(order[order[:, 0] == F] for order in schedule.orders)
    return Schedule(f"{schedule.name} forward", schedule.microbatches, schedule.placement, orders)


def in_flight(order: np.ndarray, kept: Any = 1, late: Any = 1) -> np.ndarray:
    """(actions,): what a stage holds after each action.  A forward keeps ``kept`` until its
    backward; the first half of backward exchanges it for ``late``, which the second lets go.
    Numbers, or arrays with an entry for each chunk; with ones, activations are counted.
    """
    op, chunk, _ = order.T
    chunks = max(np.size(kept), np.size(late), chunk.max(initial=0) + 1)
    kept, late = (np.broadcast_to(x, chunks) for x in (kept, late))
    change = np.stack([kept, late - kept, -late, -kept])  # F, B, W, BW
    return np.cumsum(change[op, chunk])


def peak_in_flight(order: np.ndarray) -> int:
    """The most activations that a stage holds at once."""
    return int(in_flight(order).max(initial=0))
