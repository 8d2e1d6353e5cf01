"""A pipeline schedule: drawn, checked, run in virtual time, and for real beside the plan."""

import argparse
import json
import sys
from itertools import pairwise
from pathlib import Path

from rich.console import Console

from .. import launch
from ..config import Layout, ModelConfig, TrainConfig, replace
from ..errors import ConfigError
from ..pipeline_parallel.draw import draw, legend
from ..pipeline_parallel.messages import check_blocking
from ..pipeline_parallel.schedule import BW, NAMES, B, F, Schedule, W, in_flight, peak_in_flight
from ..pipeline_parallel.schedules import SCHEDULES, make
from ..pipeline_parallel.simulate import simulate
from ..pipeline_parallel.svg import svg
from ..pipeline_parallel.text import read, write
from ..pipeline_parallel.timeline import Timeline, critical_path
from ..pipeline_parallel.trace import trace
from ..pipeline_parallel.validate import validate, validate_memory

EXAMPLES = f"""schedules: {", ".join(SCHEDULES)}, or a text file with a row for each stage:
  0F0 0F1 0BW0 0BW1          chunk, operation, micro-batch; F forward, BW backward,
  1F0 1BW0 1F1 1BW1          or its halves: B input gradient, W weight gradient

examples:
  tparallel schedule 1f1b --stages 4 --microbatches 8
  tparallel schedule zb-v --stages 4 --microbatches 8 --svg zb-v.svg --trace zb-v.json
  tparallel schedule 1f1b --save mine.txt                a start for a schedule of your own
  tparallel schedule mine.txt --memory-limit 4           run it in thought: can it, and how well?
  tparallel schedule zb-h1 --cost F=18.5,B=18.1,W=9.3 --delay 0.6
  tparallel schedule zb-h1 --stages 2 --run              on 2 ranks: planned beside measured
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    parser.add_argument("schedule", metavar="NAME|FILE.txt", help="which (see below)")
    parser.add_argument("--stages", type=int, default=4, metavar="S", help="(default: 4)")
    parser.add_argument("--microbatches", type=int, default=8, metavar="M", help="(default: 8)")
    parser.add_argument(
        "--chunks", type=int, default=0, metavar="V", help="per stage (default: what it needs)"
    )
    check = parser.add_argument_group("what it costs, and what it may")
    check.add_argument(
        "--cost",
        default="F=1,B=1,W=1",
        metavar="F=X,B=X,W=X",
        help="time of each operation on a chunk; BW is B + W unless given (default: all 1)",
    )
    check.add_argument(
        "--delay", type=float, default=0.0, metavar="X", help="time of a message (default: 0)"
    )
    check.add_argument(
        "--memory",
        default="1,1",
        metavar="KEPT,LATE",
        help="what a chunk's micro-batch holds from F to backward, and from B to W (default: 1,1)",
    )
    check.add_argument(
        "--memory-limit", type=int, metavar="N", help="refuse if a stage holds more activations"
    )
    check.add_argument(
        "--blocking",
        action="store_true",
        help="refuse what deadlocks if sends wait for their receiver",
    )
    out = parser.add_argument_group("output")
    out.add_argument("--svg", type=Path, metavar="FILE", help="write a picture")
    out.add_argument("--trace", type=Path, metavar="FILE", help="write a trace for ui.perfetto.dev")
    out.add_argument("--save", type=Path, metavar="FILE.txt", help="write the schedule as text")
    out.add_argument(
        "--run",
        action="store_true",
        help="train a small model by it on S ranks, and show the measured timeline too",
    )


def main(args: argparse.Namespace) -> int:
    schedule = _schedule(args)
    validate(schedule)
    if args.memory_limit is not None:
        validate_memory(schedule, args.memory_limit)
    if args.blocking:
        check_blocking(schedule)
    if args.save:
        args.save.write_text(write(schedule), encoding="utf-8")
    if not args.run:
        timeline = simulate(schedule, _costs(args.cost), args.delay)
        return _show(args, {"planned": timeline}, unit="")
    if launch.started_copies() == 0 and schedule.stages > 1:
        return launch.run_ranks(schedule.stages, ["-m", "tparallel", *sys.argv[1:]])
    return launch.guarded(lambda: _run(args, schedule))


def _schedule(args: argparse.Namespace) -> Schedule:
    if args.schedule.endswith(".txt"):
        return read(args.schedule)  # it says itself how many stages and micro-batches it has
    for name in ("stages", "microbatches"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} must be at least 1: {getattr(args, name)}. Use 4.")
    return make(args.schedule, args.stages, args.microbatches, args.chunks)


def _costs(text: str) -> dict[int, float]:
    try:
        pairs = [part.split("=") for part in text.split(",")]
        cost = {NAMES.index(name.strip()): float(value) for name, value in pairs}
        missing = {F, B, W} - cost.keys()
        if missing or min(cost.values()) < 0:
            raise ValueError
    except ValueError:
        raise ConfigError(
            f"--cost gives a time to F, B and W: {text!r}. Use --cost F=1,B=1,W=1."
        ) from None
    return {BW: cost[B] + cost[W], **cost}


def _run(args: argparse.Namespace, schedule: Schedule) -> int:
    """Train a small model by the schedule; its last steps are what is shown."""
    from mpi4py import MPI

    from ..pipeline_parallel import measured
    from ..train import Trainer

    comm, M = MPI.COMM_WORLD, schedule.microbatches
    layout = Layout(pp=schedule.stages, microbatches=M)
    if schedule.stages > 1:
        layout = replace(layout, schedule=args.schedule, chunks=args.chunks)
    model = ModelConfig(L=max(4, schedule.chunks), D=256, H=8, T=128)
    trainer = Trainer(model, TrainConfig(global_batch=4 * M), layout, comm)
    steps = measured.steps(trainer, warm_up=2, count=8)
    trainer.close()
    if comm.rank > 0:
        return 0
    planned = simulate(schedule, measured.costs(steps))
    middle = sorted(steps, key=lambda t: t.makespan)[len(steps) // 2]
    return _show(args, {"planned": planned, "measured": middle}, unit="s")


def _show(args: argparse.Namespace, timelines: dict[str, Timeline], unit: str) -> int:
    console = Console(highlight=False)
    schedule = next(iter(timelines.values())).schedule
    scale = max(t.makespan for t in timelines.values())
    console.print(
        f"{schedule.name}: {schedule.stages} stages, {schedule.microbatches} micro-batches, "
        f"{schedule.chunks} chunks\n"
    )
    for name, timeline in timelines.items():
        if len(timelines) > 1:
            console.print(f"{name}")
        console.print(draw(timeline, console.width, scale), soft_wrap=True)
        console.print()
    console.print(legend(schedule))
    for name, timeline in timelines.items():
        console.print(f"\n{name}", *_figures(timeline, unit, _memory(args.memory)), sep="\n")
    for path, text in (
        (args.svg, lambda: svg(timelines, unit=unit)),
        (args.trace, lambda: json.dumps(trace(timelines, 1e6 if unit else 1e3))),
    ):
        if path:
            path.write_text(text(), encoding="utf-8")
            console.print(f"written: {path}", soft_wrap=True)
    return 0


def _figures(timeline: Timeline, unit: str, memory: list[float]) -> list[str]:
    """The numbers of a timeline, a line each."""
    schedule = timeline.schedule
    peaks = [peak_in_flight(order) for order in schedule.orders]
    held = [float(in_flight(order, *memory).max()) for order in schedule.orders]
    lines = [
        f"  makespan       {timeline.makespan:.6g} {unit}".rstrip(),
        f"  bubble         {timeline.bubble:.1%} of all stages' time",
        f"  activations    at most {max(peaks)} in flight; by stage {_list(peaks)}",
        f"  peak memory    {max(held):g}; by stage {_list(held)}",
    ]
    return lines if timeline.measured else [*lines, _path(timeline)]


def _path(timeline: Timeline) -> str:
    path, schedule = critical_path(timeline), timeline.schedule
    actions = [schedule.actions(stage)[k] for stage, k in path]
    hops = sum(a[0] != b[0] for a, b in pairwise(path))
    by_op = ", ".join(
        f"{sum(a.op == op for a in actions)} {NAMES[op]}"
        for op in (F, B, W, BW)
        if any(a.op == op for a in actions)
    )
    return f"  critical path  {actions[0]} ... {actions[-1]}: {by_op}, {hops} messages"


def _memory(text: str) -> list[float]:
    try:
        kept, late = map(float, text.split(","))
    except ValueError:
        raise ConfigError(f"--memory is two numbers: {text!r}. Use --memory 1,0.9.") from None
    return [kept, late]


def _list(numbers: list) -> str:
    return " ".join(f"{n:g}" for n in numbers[:16]) + (" ..." if len(numbers) > 16 else "")
