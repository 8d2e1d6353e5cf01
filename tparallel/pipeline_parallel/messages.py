"""Do the messages of all stages' programs meet?  Checked before the first one is sent.

``checked``         a stage's program, once the schedule and everybody's messages are found right
``check_messages``  every send has its receive, with the same tag, next to what makes and needs it
``check_blocking``  what would happen if sends waited for their receives (they do not: ``execute``
                    posts them and goes on).  Small messages are buffered by MPI, and hide it.
"""

from collections.abc import Sequence
from functools import lru_cache

from ..errors import ScheduleError
from .program import AFTER, BEFORE, RECEIVES, RECV_X, SEND_X, SENDS, Instruction, programs
from .schedule import BW, Action, B, F, Schedule
from .validate import refusal, validate


@lru_cache(maxsize=64)
def checked(schedule: Schedule, stage: int) -> tuple[Instruction, ...]:
    """The program of one stage.  Every rank looks at all of them, so that all refuse alike."""
    validate(schedule)
    everybody = programs(schedule)
    check_messages(schedule, everybody)
    return everybody[stage]


def check_messages(schedule: Schedule, programs: list) -> None:
    """Raises ScheduleError unless the programs do the schedule's computations in its order, and
    their messages are complete, in place, and meet each other."""
    sent: dict[tuple, tuple] = {}
    received: dict[tuple, tuple] = {}
    for stage, program in enumerate(programs):
        _check_place(schedule, stage, program)
        for i in program:
            if i.op in SENDS + RECEIVES:
                ends = (stage, i.peer) if i.op in SENDS else (i.peer, stage)
                side = sent if i.op in SENDS else received
                key = (*ends, i.tag)
                if key in side:
                    raise _refuse(schedule, stage, i, f"its tag {i.tag} is used twice")
                side[key] = stage, i
    for side, other in ((sent, received), (received, sent)):
        for key in side.keys() - other.keys():
            stage, i = side[key]
            what = "receives" if i.op in SENDS else "sends"
            why = f"stage {i.peer} {what} nothing with its tag {i.tag} there"
            raise _refuse(schedule, stage, i, why)


def _check_place(schedule: Schedule, stage: int, program: Sequence[Instruction]) -> None:
    """A receive stands directly before the computation that needs it, a send directly after the
    one that makes it; none is missing and none is in excess."""
    where, at = schedule.placement, 0
    for action in schedule.actions(stage):
        before, after = _message(BEFORE, action, where), _message(AFTER, action, where)
        for expected in (before, Instruction(*action), after):
            if expected is None:
                continue
            found = program[at] if at < len(program) else None
            if found is None or found[:4] != expected[:4]:
                now = f"{found} comes there" if found else "the program ends there"
                raise _refuse(schedule, stage, expected, f"it is missing: {now}")
            at += 1
    if at < len(program):
        raise _refuse(schedule, stage, program[at], "nothing is left that needs it")


def _message(table: dict, action: Action, where: Sequence[int]) -> Instruction | None:
    """The message before or after a computation, by the stages that hold the two chunks."""
    op, chunk, m = action
    what, step = table.get(op, (None, 0))
    other = chunk + step
    if what is None or not 0 <= other < len(where) or where[other] == where[chunk]:
        return None
    return Instruction(what, chunk, m, where[other])


def check_blocking(schedule: Schedule) -> None:
    """Raises ScheduleError, and names who waits for whom, if the programs deadlock with sends that
    are neither buffered nor posted: each waits until its receiver stands at the receive."""
    todo = programs(schedule)
    at = [0] * len(todo)
    active = list(range(len(todo)))
    while active:
        stage = active.pop()
        while at[stage] < len(todo[stage]):
            i = todo[stage][at[stage]]
            if i.peer >= 0:
                peer = i.peer
                theirs = todo[peer][at[peer]] if at[peer] < len(todo[peer]) else None
                if theirs is None or theirs.peer != stage or theirs.tag != i.tag:
                    break
                at[peer] += 1
                active.append(peer)
            at[stage] += 1
    stuck = [stage for stage in range(len(todo)) if at[stage] < len(todo[stage])]
    if not stuck:
        return
    chain = [stuck[0]]
    while chain.count(chain[-1]) < 2:
        chain.append(todo[chain[-1]][at[chain[-1]]].peer)
    cycle = chain[chain.index(chain[-1]) : -1]
    waits = [f"rank {s} at {todo[s][at[s]]} for rank {todo[s][at[s]].peer}" for s in cycle]
    raise refusal(
        schedule,
        [(s, _place(schedule, s, todo[s][at[s]])) for s in cycle],
        f"blocking, unbuffered sends need a receiver that stands ready: with {schedule.name} these "
        f"wait in a circle: {', '.join(waits)}. Post the sends and go on, as tparallel does.",
    )


def _refuse(schedule: Schedule, stage: int, i: Instruction, why: str) -> ScheduleError:
    other = f" with stage {i.peer}" if i.peer >= 0 else ""
    return refusal(
        schedule,
        [(stage, _place(schedule, stage, i))],
        f"messages must meet: stage {stage}, {i}{other}: {why}. Derive the messages from the "
        "schedule (program.py).",
    )


def _place(schedule: Schedule, stage: int, i: Instruction) -> int:
    """Where the computation stands that a message serves (the end, if there is none)."""
    ops = {F} if i.op in (RECV_X, SEND_X) else {B, BW} if i.peer >= 0 else {i.op}
    for k, (op, chunk, m) in enumerate(schedule.actions(stage)):
        if op in ops and (chunk, m) == i[1:3]:
            return k
    return len(schedule.orders[stage])
