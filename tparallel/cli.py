"""The command line: ``tparallel COMMAND``, on one process or under mpirun.

A command is a module of ``commands/`` with ``add_arguments(parser)`` and ``main(args)``; it is
imported when it is chosen, so that ``--help`` answers at once.  A command that needs ranks starts
them itself (``--ranks 4``), unless a launcher has started it already.
"""

import argparse
import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import NamedTuple

from . import __version__, launch
from .errors import ConfigError, LayoutError, TParallelError


class Command(NamedTuple):
    help: str
    ranks: int = 0  # started if --ranks is not given; 0: runs without ranks


COMMANDS = {
    "compare": Command("every layout beside serial: equal? bytes, waiting, time", ranks=4),
    "train": Command("train one layout on a text", ranks=1),
    "eval": Command("the loss of a model on a text, and its logits, in any layout", ranks=1),
    "generate": Command("new text behind prompts, in any layout", ranks=1),
    "export": Command("write a model's weights as a folder that transformers loads"),
    "checkpoint": Command("the checkpoints of a folder: whole, or why not"),
    "schedule": Command("a pipeline schedule: draw it, check it, predict it, run it"),
    "verify": Command("every layout against one process: a grid of answers", ranks=8),
    "sabotage": Command("known bugs, put in: does a check notice, does the loss?", ranks=4),
    "where": Command("who holds which part of a parameter, and who sums its gradient"),
    "info": Command("versions, MPI, backend, cores: what a run here would use"),
}

EXAMPLES = """examples:
  tparallel compare                                 all layouts for 4 ranks, side by side
  tparallel train --tp 2 --pp 2 --steps 100         one layout, 4 ranks
  tparallel eval --weights gpt2 --data book.txt     a model in Hugging Face's format
  tparallel generate --weights gpt2 --prompt "The"  new text, in any layout
  mpirun -n 8 python -m tparallel compare           under a launcher of your own
  tparallel compare --backend cupy                  on GPUs
  tparallel where block.0.mlp.w_in --tp 2 --dp 2 --zero 3
  tparallel schedule 1f1b --stages 4 --microbatches 8
  tparallel COMMAND --help                          the options of a command
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 not equal or failed, 2 refused."""
    argv = list(sys.argv[1:] if argv is None else argv)
    chosen = next((a for a in argv if not a.startswith("-")), "")
    if refused := launch.refused():  # before the command's module loads MPI
        return refused
    if chosen in COMMANDS and COMMANDS[chosen].ranks:
        launch.defer_mpi()  # this process may only start the ranks
    try:
        _settle_backend(argv)
        with _one_voice():
            args = _parse(argv, chosen)
    except TParallelError as e:  # what is chosen when a module is imported cannot be had
        return _refuse(e)
    command = COMMANDS[args.command]
    if not command.ranks:
        return _alone(lambda: args.main(args))
    wanted = _ranks_wanted(args, command)
    if wanted > 1 and not launch.started_copies():  # no launcher yet
        return _alone(lambda: launch.run_ranks(wanted, ["-m", "tparallel", *argv]))
    return launch.guarded(lambda: _in_place(args), args.timeout)


@contextmanager
def _one_voice() -> Iterator[None]:
    """Under a launcher --help and a wrong option are answered by rank 0; the others wait for it."""
    if launch.env_rank() == 0:
        yield
        return
    try:
        with open(os.devnull, "w") as no, redirect_stdout(no), redirect_stderr(no):
            yield
    except SystemExit:
        time.sleep(1)
        raise


def _settle_backend(argv: list[str]) -> None:
    """``--backend`` must be known before a command's module is imported."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--backend")
    if not (wanted := early.parse_known_args(argv)[0].backend):
        return
    loaded = sys.modules.get(f"{__package__}.backend")
    if loaded and loaded.name != wanted:
        raise ConfigError(
            f"the backend is chosen before anything is computed: --backend {wanted}, but this "
            f"process has begun with {loaded.name}. Set TPARALLEL_BACKEND={wanted} at its start."
        )
    os.environ["TPARALLEL_BACKEND"] = wanted


def _parse(argv: list[str], chosen: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tparallel",
        description="One transformer, split every way across ranks, side by side.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tparallel {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, description=command.help)
        if name == chosen:
            module = importlib.import_module(f".commands.{name}", __package__)
            _add_common(sub, command)
            module.add_arguments(sub)
            sub.set_defaults(main=module.main)
    return parser.parse_args(argv)


def _add_common(sub: argparse.ArgumentParser, command: Command) -> None:
    """What every command takes, and what every command with ranks takes."""
    sub.add_argument(
        "--backend",
        metavar="NAME",
        help="numpy, or cupy for GPUs (default: TPARALLEL_BACKEND, or numpy)",
    )
    if not command.ranks:
        return
    sub.add_argument(
        "--ranks",
        type=int,
        metavar="N",
        help=f"start N ranks here (default: what the layout needs, or {command.ranks})",
    )
    sub.add_argument(
        "--check",
        action="store_true",
        help="ranks tell each other about every call first; a mismatch ends the job with a table "
        "of who was where",
    )
    sub.add_argument(
        "--timeout",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="end the job, with every rank's stack, when no step is finished for so long "
        "(default: 0, never)",
    )


def _ranks_wanted(args: argparse.Namespace, command: Command) -> int:
    """--ranks, or what the layout's flags need, or the command's default."""
    if args.ranks:
        return args.ranks
    product = 1
    for axis in ("tp", "pp", "dp"):
        product *= getattr(args, axis, None) or 1
    return max(product, 1 if product > 1 else command.ranks)


def _in_place(args: argparse.Namespace) -> int:
    from mpi4py import MPI

    size = MPI.COMM_WORLD.size
    if args.ranks and args.ranks != size:
        raise LayoutError(
            f"--ranks and the launcher must agree: --ranks {args.ranks}, the launcher started "
            f"{size}. Leave --ranks away, or use mpirun -n {args.ranks}."
        )
    if args.check:
        os.environ["TPARALLEL_CHECK"] = "1"
    return args.main(args)


def _refuse(error: TParallelError) -> int:
    """Said by rank 0, before any of the others ends."""
    if launch.env_rank() == 0:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    else:
        time.sleep(1)
    return 2


def _alone(work: Callable[[], int]) -> int:
    try:
        return work()
    except TParallelError as e:
        return _refuse(e)
