"""Every layout beside serial: equal, and what each holds, sends and waits for."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from .. import data, layouts
from ..compare import record
from ..compare.measure import WARM_UP
from ..compare.progress import Bar, Silent
from ..compare.run import Task, compare
from ..compare.show import drawn, show_result
from ..compare.verdict import failures
from ..config import ModelConfig, TrainConfig
from ..errors import ConfigError, LayoutError
from ..report.console import job_console
from . import flags

EXAMPLES = """examples:
  tparallel compare --ranks 4                        every layout for four ranks, about a minute
  tparallel compare --ranks 4 --quick                the same on a tiny model: some seconds
  tparallel compare --ranks 4 --layouts "tp=4; dp=4 zero=3"       two of them
  tparallel compare --ranks 4 --add "tp=2,dp=2,zero=2"            one more of your own
  tparallel compare --ranks 8 --size S --dtype float64 --data book.txt
  mpirun -n 4 python -m tparallel compare            under a launcher

Exit code 0 only if every layout is equal to serial and every byte is where the closed form says.
"""
SIZES: dict[str, dict[str, Any]] = {
    "default": {},
    "tiny": {"L": 4, "D": 32, "H": 4, "T": 16},
    "S": {"L": 4, "D": 256, "H": 8, "T": 128},
    "M": {"L": 6, "D": 512, "H": 8, "T": 256},
}
QUICK = {"steps": 6}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    what = parser.add_argument_group("what is compared")
    what.add_argument(
        "--layouts",
        metavar="NAMES",
        help='some of the list, by the names in the table: "tp=4; dp=4 zero=1" (default: all)',
    )
    what.add_argument(
        "--add",
        action="append",
        default=[],
        metavar="LAYOUT",
        help='a layout of your own, "tp=2,dp=2,zero=2"; may be given several times',
    )
    what.add_argument(
        "--size",
        choices=SIZES,
        help="sizes of the model; --L, --D, ... change one of them (default: default)",
    )
    what.add_argument("--quick", action="store_true", help="the tiny size and few steps")
    what.add_argument(
        "--data",
        nargs="+",
        metavar="FILE",
        help="text files, or topics (default: the reference text of Python's help) or stdlib",
    )
    out = parser.add_argument_group("output")
    out.add_argument(
        "--out",
        type=Path,
        default=Path("results/compare"),
        metavar="DIR",
        help="where compare.json and compare.png go (default: results/compare)",
    )
    out.add_argument("--json", action="store_true", help="print the result as JSON, no table")
    out.add_argument("--no-plot", action="store_true", help="no compare.png")
    flags.add_flags(parser, ModelConfig, TrainConfig)


def main(args: argparse.Namespace) -> int:
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    corpus, task = _task(args, world)
    _check_folder(args.out, world)
    console = job_console(world.rank, stderr=args.json)
    about = {"data": corpus.identity(), "load_at_start": record.load()}
    with _progress(console, world, task) as show:
        found = compare(world, task, show)
    code = 0
    if found is not None:
        result = record.report(task, world.size, about, *found)
        written = [record.write(result, args.out)]  # first: whatever the terminal does then
        if not args.no_plot:
            written += drawn(result, args.out, console)
        if args.json:
            print(record.dumps(result))
        show_result(result, written, console)
        code = 1 if failures(result) else 0
    return world.bcast(code)


def _task(args: argparse.Namespace, world: Any) -> tuple[data.Corpus, Task]:
    """What the flags ask for, checked, before the first message.  Errors: TParallelError."""
    size = SIZES[args.size or ("tiny" if args.quick else "default")]
    given = argparse.Namespace(**{**size, **(QUICK if args.quick else {}), **vars(args)})
    model, train = flags.model_config(given), flags.train_config(given)
    if train.steps <= WARM_UP:
        raise ConfigError(
            f"the first {WARM_UP} steps warm up and are not timed: steps = {train.steps}. "
            f"Use --steps {WARM_UP + 1} or more."
        )
    wanted = layouts.for_ranks(world.size, model, train)
    if args.layouts is not None:
        wanted = layouts.picked(wanted, args.layouts)
    wanted += [layouts.parse(text, train.global_batch) for text in args.add]
    wanted = list(dict.fromkeys(wanted))
    if not wanted:
        raise LayoutError("there must be something to compare: --layouts is empty. Leave it away.")
    corpus = data.load(args.data, model.V)

    def batch(step: int) -> tuple:
        return corpus.batch(step, train.global_batch, model.T, train.seed)

    task = Task(model, train, dict(zip(layouts.labels(wanted), wanted)), batch)
    task.check(world.size)
    corpus.check(model.T)
    data.agree(corpus, world)
    return corpus, task


def _check_folder(folder: Path, world: Any) -> None:
    """Errors: ConfigError on every rank, before any work, if nothing can be written there."""
    problem = ""
    if world.rank == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as e:
            problem = (e.strerror or str(e)).lower()
    if problem := world.bcast(problem):
        raise ConfigError(
            f"--out must be a folder that can be written: {str(folder)!r}: {problem}. "
            "Use another one."
        )


def _progress(console: Console, world: Any, task: Task) -> Silent:
    if world.rank > 0:
        return Silent()
    return Bar(console, len(task.layouts), task.train.steps)
