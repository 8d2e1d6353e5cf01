"""Timelines in Chrome's trace format, for ui.perfetto.dev or chrome://tracing: a process for each
timeline (planned, measured), a thread for each stage, and an arrow for each message.
"""

from .program import RECV_DX, RECV_X, SENDS, programs
from .schedule import MEANING, NAMES
from .timeline import Timeline


def trace(timelines: dict[str, Timeline], microseconds: float = 1e6) -> dict:
    """What ``json.dump`` writes; ``microseconds`` in one unit of the timelines' time."""
    events: list[dict] = []
    for pid, (name, timeline) in enumerate(timelines.items()):
        events.append(_named("process_name", f"{name} {timeline.schedule.name}", pid, 0))
        events += [
            _named("thread_name", f"stage {s}", pid, s) for s in range(timeline.schedule.stages)
        ]
        spans = _spans(timeline, microseconds)
        events += [
            {
                "ph": "X",
                "name": f"{NAMES[action.op]}{action.microbatch}",
                "cat": MEANING[action.op],
                "pid": pid,
                "tid": stage,
                "ts": start,
                "dur": end - start,
                "args": {"chunk": action.chunk, "micro-batch": action.microbatch},
            }
            for (stage, action), (start, end) in spans.items()
        ]
        events += _arrows(timeline, spans, pid)
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _spans(timeline: Timeline, microseconds: float) -> dict:
    """(stage, action) -> start, end, from the begin of the timeline."""
    out = {}
    for stage in range(timeline.schedule.stages):
        times = zip(timeline.start[stage], timeline.end[stage])
        for action, (start, end) in zip(timeline.schedule.actions(stage), times):
            out[stage, action] = tuple(
                float(t - timeline.begin) * microseconds for t in (start, end)
            )
    return out


def _arrows(timeline: Timeline, spans: dict, pid: int) -> list[dict]:
    """From the end of what makes a message to the start of what needs it."""
    by_tag: dict = {}
    schedule = timeline.schedule
    for stage, program in enumerate(programs(schedule)):
        for k, i in enumerate(program):
            if i.op in SENDS:
                by_tag.setdefault((stage, i.peer, i.tag), {})["s"] = stage, program[k - 1][:3]
            elif i.op in (RECV_X, RECV_DX):
                by_tag.setdefault((i.peer, stage, i.tag), {})["f"] = stage, program[k + 1][:3]
    events = []
    for number, ends in enumerate(by_tag.values()):
        for phase, (stage, action) in ends.items():
            moment = spans[stage, action][1 if phase == "s" else 0]
            events.append(
                {
                    "ph": phase,
                    "id": pid * len(by_tag) + number,
                    "name": "message",
                    "cat": "message",
                    "pid": pid,
                    "tid": stage,
                    "ts": moment,
                    **({"bp": "e"} if phase == "f" else {}),
                }
            )
    return events


def _named(kind: str, name: str, pid: int, tid: int) -> dict:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}
