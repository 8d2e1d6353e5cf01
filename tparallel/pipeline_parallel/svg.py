"""A timeline as a picture (SVG): a stage a row; of several timelines, each stage's rows together.

Colour is the operation, its shade the chunk, the number the micro-batch; white is the bubble, and
the actions with a dark edge are the critical path.
"""

from html import escape
from math import floor, log10

from .draw import colour
from .schedule import BW, B, F, Schedule, W
from .timeline import Timeline, critical_path

LEFT, TOP, ROW, GAP, FOOT = 130, 64, 22, 8, 34  # pixels
LEGEND = {F: "F forward", B: "B input gradient", W: "W weight gradient", BW: "BW whole backward"}


def svg(timelines: dict[str, Timeline], width: int = 1100, unit: str = "") -> str:
    """``timelines``: by name, of one schedule, all drawn to the same scale from their own begin."""
    schedule = next(iter(timelines.values())).schedule
    longest = max(t.makespan for t in timelines.values())
    scale = (width - LEFT - 20) / longest
    block = len(timelines) * (ROW + 1) + GAP
    height = TOP + schedule.stages * block + FOOT
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(10, 20, _title(schedule, timelines, unit), 'font-size="14"'),
        *_legend({op for order in schedule.orders for op in set(order[:, 0].tolist())}, schedule),
    ]
    for i, (name, timeline) in enumerate(timelines.items()):
        path = set() if timeline.measured else set(critical_path(timeline))
        for stage in range(schedule.stages):
            y = TOP + stage * block + i * (ROW + 1)
            label = f"stage {stage}" + (f" {name}" if len(timelines) > 1 else "")
            out.append(_text(LEFT - 8, y + 15, label, 'text-anchor="end"'))
            out.append(
                f'<rect x="{LEFT}" y="{y}" width="{timeline.makespan * scale:.1f}" '
                f'height="{ROW}" fill="#f2f2f2"/>'
            )
            out += _row(timeline, stage, y, scale, path)
    out += _axis(TOP + schedule.stages * block + 4, longest, scale, unit)
    return "\n".join([*out, "</svg>", ""])


def _row(timeline: Timeline, stage: int, y: int, scale: float, path: set) -> list[str]:
    out = []
    times = zip(timeline.start[stage], timeline.end[stage])
    for k, (action, (start, end)) in enumerate(zip(timeline.schedule.actions(stage), times)):
        x, w = LEFT + (start - timeline.begin) * scale, (end - start) * scale
        edge = ("#222", 1.5) if (stage, k) in path else ("white", 0.5)
        tip = f"{action}: {start - timeline.begin:.6g} to {end - timeline.begin:.6g}"
        out.append(
            f'<rect x="{x:.2f}" y="{y + 1}" width="{max(w, 0.3):.2f}" height="{ROW - 2}" '
            f'fill="{colour(action.op, action.chunk, timeline.schedule)}" stroke="{edge[0]}" '
            f'stroke-width="{edge[1]}"><title>{tip}</title></rect>'
        )
        m = str(action.microbatch)
        if w > 7 * len(m) + 2:
            out.append(_text(x + w / 2, y + 15, m, 'text-anchor="middle" fill="white"'))
    return out


def _title(schedule: Schedule, timelines: dict, unit: str) -> str:
    said = ", ".join(
        f"{name}: makespan {t.makespan:.4g}{unit and ' ' + unit}, bubble {t.bubble:.1%}"
        for name, t in timelines.items()
    )
    return (
        f"{schedule.name}, {schedule.stages} stages, {schedule.microbatches} micro-batches. {said}"
    )


def _legend(ops: set[int], schedule: Schedule) -> list[str]:
    out, x = [], LEFT
    for op in sorted(ops):
        for chunk in (0, schedule.stages)[: 1 + (schedule.chunks > schedule.stages)]:
            fill = colour(op, chunk, schedule)
            out.append(f'<rect x="{x}" y="34" width="14" height="14" fill="{fill}"/>')
            x += 16
        out.append(_text(x + 2, 45, LEGEND[op], ""))
        x += 20 + 7 * len(LEGEND[op])
    out.append(f'<rect x="{x}" y="34" width="14" height="14" fill="none" stroke="#222"/>')
    return [*out, _text(x + 18, 45, "critical path", "")]


def _axis(y: int, longest: float, scale: float, unit: str) -> list[str]:
    step = _round_step(longest / 10)
    out = []
    for i in range(int(longest / step) + 1):
        x = LEFT + i * step * scale
        out.append(f'<line x1="{x:.1f}" y1="{y}" x2="{x:.1f}" y2="{y + 5}" stroke="#888"/>')
        out.append(_text(x, y + 17, f"{i * step:g}", 'text-anchor="middle" fill="#555"'))
    return [*out, _text(10, y + 17, f"time{unit and ' in ' + unit}", 'fill="#555"')]


def _round_step(x: float) -> float:
    """1, 2 or 5 times a power of ten, at least x."""
    power = 10.0 ** floor(log10(x))
    return next(power * k for k in (1, 2, 5, 10) if power * k >= x)


def _text(x: float, y: float, text: str, how: str) -> str:
    return f'<text x="{x:.1f}" y="{y}" {how}>{escape(text)}</text>'
