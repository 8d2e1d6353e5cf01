"""From a schedule to programs: each computation, with the messages that it implies.

The rule is local.  The input of a chunk comes from the stage that holds the chunk before it; if
that is another stage, a receive stands before the forward and a send after its twin over there;
if it is the same stage, the array is handed over in place.  Backward is the mirror image.
"""

from typing import NamedTuple

from .schedule import BW, B, F, Schedule

RECV_X, SEND_X = "recv_x", "send_x"  # activations, downstream
RECV_DX, SEND_DX = "recv_dx", "send_dx"  # their gradients, upstream


class Instruction(NamedTuple):
    """``op`` on a chunk's micro-batch; ``peer`` is the other stage of a message."""

    op: str
    chunk: int
    microbatch: int
    peer: int | None = None


def program(schedule: Schedule, stage: int) -> list[Instruction]:
    """What one stage does, in order."""
    where, last = schedule.placement, len(schedule.placement) - 1
    out = []

    def message(op: str, chunk: int, m: int, other_chunk: int) -> None:
        if 0 <= other_chunk <= last and where[other_chunk] != stage:
            out.append(Instruction(op, chunk, m, where[other_chunk]))

    for op, chunk, m in schedule.orders[stage]:
        if op == F:
            message(RECV_X, chunk, m, chunk - 1)
        if op in (B, BW):
            message(RECV_DX, chunk, m, chunk + 1)
        out.append(Instruction(op, chunk, m))
        if op == F:
            message(SEND_X, chunk, m, chunk + 1)
        if op in (B, BW):
            message(SEND_DX, chunk, m, chunk - 1)
    return out


def programs(schedule: Schedule) -> list[list[Instruction]]:
    return [program(schedule, stage) for stage in range(schedule.stages)]


def partner(i: Instruction, stage: int) -> tuple[int, str, int, int]:
    """The receive that a send meets: (stage, op, chunk, microbatch).  A send names the sender's
    chunk, a receive the receiver's: one further for activations, one back for gradients."""
    if i.op == SEND_X:
        return i.peer, RECV_X, i.chunk + 1, i.microbatch
    return i.peer, RECV_DX, i.chunk - 1, i.microbatch
