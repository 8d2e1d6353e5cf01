"""The command line: ``tparallel COMMAND``, on one process or under mpirun.

A command is a module of ``commands/`` with ``add_arguments(parser)`` and ``main(args)``; it is
imported when it is chosen, so that ``--help`` answers at once.  A command that needs ranks starts
them itself (``--ranks 4``), unless a launcher has started it already.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from . import __version__, launch
from .errors import LayoutError, TParallelError


class Command(NamedTuple):
    help: str
    ranks: int = 0  # started if --ranks is not given; 0: runs without ranks


COMMANDS = {
    "compare": Command("every layout beside serial: equal? bytes, waiting, time", ranks=4),
    "train": Command("train one layout on a text", ranks=1),
    "schedule": Command("a pipeline schedule: draw it, check it, predict it, run it"),
    "where": Command("who holds which part of a parameter, and who sums its gradient"),
    "info": Command("versions, MPI, backend, cores: what a run here would use"),
}

EXAMPLES = """examples:
  tparallel compare                                 all layouts for 4 ranks, side by side
  tparallel train --tp 2 --pp 2 --steps 100         one layout, 4 ranks
  mpirun -n 8 python -m tparallel compare           under a launcher of your own
  tparallel where block.0.mlp.w_in --tp 2 --dp 2 --zero 3
  tparallel schedule 1f1b --stages 4 --microbatches 8
  tparallel COMMAND --help                          the options of a command
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 not equal or failed, 2 refused."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = _parse(argv)
    command = COMMANDS[args.command]
    if not command.ranks:
        return _alone(args)
    started = launch.started_copies()
    if started == 0:  # no launcher yet
        wanted = _ranks_wanted(args, command)
        if wanted > 1:
            return launch.run_ranks(wanted, ["-m", "tparallel", *argv])
    return launch.guarded(lambda: _in_place(args, started))


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tparallel",
        description="One transformer, split every way across ranks, side by side.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tparallel {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    chosen = next((a for a in argv if not a.startswith("-")), None)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, description=command.help)
        if name == chosen:
            module = importlib.import_module(f".commands.{name}", __package__)
            if command.ranks:
                sub.add_argument(
                    "--ranks",
                    type=int,
                    metavar="N",
                    help=f"start N ranks here (default: what the layout needs, or {command.ranks})",
                )
            module.add_arguments(sub)
            sub.set_defaults(main=module.main)
    return parser.parse_args(argv)


def _ranks_wanted(args: argparse.Namespace, command: Command) -> int:
    """--ranks, or what the layout's flags need, or the command's default."""
    if args.ranks:
        return args.ranks
    product = 1
    for axis in ("tp", "pp", "dp"):
        product *= getattr(args, axis, None) or 1
    return max(product, 1 if product > 1 else command.ranks)


def _in_place(args: argparse.Namespace, started: int) -> int:
    if args.ranks and started and args.ranks != started:
        raise LayoutError(
            f"--ranks and the launcher must agree: --ranks {args.ranks}, the launcher started "
            f"{started}. Leave --ranks away, or use mpirun -n {args.ranks}."
        )
    return args.main(args)


def _alone(args: argparse.Namespace) -> int:
    try:
        return args.main(args)
    except TParallelError as e:
        print(f"{type(e).__name__}: {e}", file=sys.stderr)
        return 2
