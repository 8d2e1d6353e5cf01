"""From a schedule to programs: each computation, with the messages that it implies.

The rule is local.  The input of a chunk comes from the stage that holds the chunk before it; if
that is another stage, a receive stands directly before the forward, and a send directly after its
twin over there; if it is the same stage, the array is handed over in place.  Backward is the
mirror image.  The tag of a message carries micro-batch, receiving chunk and direction, so that no
message can be taken for another.
"""

from typing import NamedTuple

from .schedule import BW, NAMES, B, F, Schedule

RECV_X, SEND_X, RECV_DX, SEND_DX = range(4, 8)  # activations, and their gradients
RECEIVES, SENDS = (RECV_X, RECV_DX), (SEND_X, SEND_DX)
BEFORE = {F: (RECV_X, -1), B: (RECV_DX, +1), BW: (RECV_DX, +1)}  # what an action needs, from whom
AFTER = {F: (SEND_X, +1), B: (SEND_DX, -1), BW: (SEND_DX, -1)}  # what it gives, to whom


class Instruction(NamedTuple):
    """``op`` on a chunk's micro-batch; of a message also the other stage, and the tag (else -1)."""

    op: int
    chunk: int
    microbatch: int
    peer: int = -1
    tag: int = -1

    def __str__(self) -> str:
        name = (*NAMES, "recv_x", "send_x", "recv_dx", "send_dx")[self.op]
        return f"{self.chunk}{name}{self.microbatch}"


def program(schedule: Schedule, stage: int) -> tuple[Instruction, ...]:
    """What one stage does, in order."""
    where, out = schedule.placement, []

    def message(op: int, chunk: int, m: int, other: int) -> None:
        if 0 <= other < len(where) and where[other] != stage:
            to_chunk = chunk if op in RECEIVES else other
            back = op in (RECV_DX, SEND_DX)
            out.append(Instruction(op, chunk, m, where[other], tag_of(schedule, to_chunk, m, back)))

    for op, chunk, m in schedule.orders[stage].tolist():
        if op in BEFORE:
            what, step = BEFORE[op]
            message(what, chunk, m, chunk + step)
        out.append(Instruction(op, chunk, m))
        if op in AFTER:
            what, step = AFTER[op]
            message(what, chunk, m, chunk + step)
    return tuple(out)


def programs(schedule: Schedule) -> list[tuple[Instruction, ...]]:
    return [program(schedule, stage) for stage in range(schedule.stages)]


def tag_of(schedule: Schedule, to_chunk: int, m: int, back: bool) -> int:
    return (m * schedule.chunks + to_chunk) * 2 + back
