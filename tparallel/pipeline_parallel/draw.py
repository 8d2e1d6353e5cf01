"""A schedule as rows of characters: a stage a row, time (or the order alone) to the right.

A cell shows its operation and micro-batch, such as ``F3``, and is coloured by operation.  A dot is
a stage that waits: the bubble.
"""

from collections.abc import Sequence

from rich.text import Text

from .schedule import BW, MEANING, NAMES, B, F, Schedule, W
from .timeline import Timeline

# dark and light: chunks in turn.  Blue, orange and green apart for every kind of colour vision.
COLOURS = {
    F: ("#1f5fa8", "#6ea8e0"),
    B: ("#0b7a5c", "#4fc3a1"),
    BW: ("#0b7a5c", "#4fc3a1"),
    W: ("#b35c00", "#f0a040"),
}
LETTERS = "abcdefghijklmnopqrstuvwxyz"
NEAR = 4  # stages, and places in an order, that are shown around a marked cell of a large grid


def colour(op: int, chunk: int, schedule: Schedule) -> str:
    return COLOURS[op][chunk // schedule.stages % 2]


def draw(timeline: Timeline, width: int = 100, longest: float = 0.0) -> Text:
    """The timeline, to scale, at most ``width`` characters wide; without colours it is text that
    can be read too (``.plain``).  ``longest`` is the time that fills the width, for several
    timelines on one scale (0: its own)."""
    schedule, names = timeline.schedule, _row_names(timeline.schedule)
    room = width - len(names[0])
    longest = longest or timeline.makespan
    scale = room / longest  # characters per unit of time: whole ones for whole times
    if scale >= 1 and timeline.makespan == int(timeline.makespan):
        scale = float(min(4, int(scale)))
    rows = []
    for stage, name in enumerate(names):
        row, at = Text(name), 0
        for action, start, end in zip(
            schedule.actions(stage), timeline.start[stage], timeline.end[stage]
        ):
            a, b = (max(at, round((t - timeline.begin) * scale)) for t in (start, end))
            row.append("." * (a - at), style="dim")
            style = f"bold white on {colour(action.op, action.chunk, schedule)}"
            row.append(label(action.op, action.microbatch, b - a), style=style)
            at = b
        row.append("." * (round(timeline.makespan * scale) - at), style="dim")
        rows.append(row)
    return Text("\n").join(rows)


def legend(schedule: Schedule) -> Text:
    """What the colours and letters mean."""
    out = Text()
    for op in sorted({op for order in schedule.orders for op in set(order[:, 0].tolist())}):
        for chunk in (0, schedule.stages)[: 1 + (schedule.chunks > schedule.stages)]:
            out.append(f" {NAMES[op]} ", style=f"bold white on {colour(op, chunk, schedule)}")
        out.append(f" {MEANING[op]}\n")
    return out.append("  .  waits: the bubble")


def label(op: int, m: int, width: int) -> str:
    """``F3`` where it fits, else one sign: 3 is the forward of micro-batch 3, d its backward, D
    its weight gradient alone."""
    letter = LETTERS[m % len(LETTERS)]
    short = str(m)[-1] if op == F else letter.upper() if op == W else letter
    for text in (f"{NAMES[op]}{m}", f"{NAMES[op][0]}{m}"):
        if len(text) + (op == BW) <= width:
            return text.ljust(width)
    return (short * width)[:width]


def grid(schedule: Schedule, marked: Sequence[tuple[int, int]] = ()) -> str:
    """The orders alone, without times, marked cells between ``>`` and ``<``.  A place after the
    last action of a stage is where something is missing.  Of a large grid, what is near a mark."""
    names, wide = _row_names(schedule), max(map(len, schedule.orders)) + 1
    stages, places = [*range(schedule.stages)], [*range(wide)]
    if marked and schedule.stages > 4 * NEAR:
        stages = sorted({s for m, _ in marked for s in stages if abs(s - m) <= NEAR})
    if marked and wide > 8 * NEAR:
        places = sorted({k for _, m in marked for k in places if abs(k - m) <= NEAR})
    rows = []
    for stage in stages:
        order = schedule.actions(stage)
        cells = [
            f">{order[k] if k < len(order) else '?'}<"
            if (stage, k) in marked
            else f" {order[k]} "
            if k < len(order)
            else ""
            for k in places
        ]
        rows.append((names[stage], cells))
    size = max(len(cell) for _, cells in rows for cell in cells)
    return "\n".join(name + "".join(c.ljust(size) for c in cells).rstrip() for name, cells in rows)


def _row_names(schedule: Schedule) -> list[str]:
    digits = len(str(schedule.stages - 1))
    return [f"stage {stage:{digits}} " for stage in range(schedule.stages)]
