"""A schedule as text, to write your own: one row per stage, actions in the order of computation.

    # 1F1B, two stages, two micro-batches
    0F0 0F1 0BW0 0BW1
    1F0 1BW0 1F1 1BW1

``1BW0`` is chunk 1, both halves of backward, micro-batch 0; F is a forward, B the gradient of the
input, W of the weights.  A chunk lives on the stage in whose row it stands (with one chunk per
stage, a chunk's number is its stage's).  What follows a ``#`` is a comment.
"""

import re
from pathlib import Path

from ..errors import ScheduleError
from .schedule import NAMES, Action, Schedule, schedule_of

ACTION = re.compile(r"(\d{1,6})(BW|F|B|W)(\d{1,6})")


def read(path: str) -> Schedule:
    """The schedule in a text file; it may still be one that cannot run (``validate``)."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ScheduleError(
            f"a schedule file must be readable text: {path}: {e}. Use one row per stage, such as "
            "0F0 0F1 0BW0 0BW1."
        ) from None
    return parse(text, Path(path).name)


def parse(text: str, name: str) -> Schedule:
    rows = [line.partition("#")[0].split() for line in text.splitlines()]
    orders = [
        [_action(word, name, line) for word in row] for line, row in enumerate(rows, 1) if row
    ]
    if not orders:
        raise ScheduleError(
            f"a schedule has a row for every stage: {name} has none. Use rows such as "
            "0F0 0F1 0BW0 0BW1."
        )
    at: dict[int, int] = {}
    for stage, order in enumerate(orders):
        for action in order:
            at.setdefault(action.chunk, stage)
    chunks, M = max(at) + 1, max(a.microbatch for order in orders for a in order) + 1
    missing = [chunk for chunk in range(chunks) if chunk not in at]
    if missing:
        raise ScheduleError(
            f"chunks are numbered from 0 without a gap: {name} has chunk {chunks - 1}, but nothing "
            f"for chunk {missing[0]}. Add its actions, or number the chunks anew."
        )
    return schedule_of(name, M, [at[chunk] for chunk in range(chunks)], orders)


def _action(word: str, name: str, line: int) -> Action:
    found = ACTION.fullmatch(word)
    if not found:
        raise ScheduleError(
            f"an action is chunk, operation, micro-batch: {name}, line {line}: {word!r} is none. "
            f"Use {', '.join(NAMES)} between two numbers, such as 2F0."
        )
    return Action(NAMES.index(found[2]), int(found[1]), int(found[3]))


def write(schedule: Schedule) -> str:
    """What ``parse`` reads back."""
    rows = [" ".join(map(str, schedule.actions(stage))) for stage in range(schedule.stages)]
    title = f"# {schedule.name}: {schedule.stages} stages, {schedule.microbatches} micro-batches"
    return "\n".join([title, *rows, ""])
