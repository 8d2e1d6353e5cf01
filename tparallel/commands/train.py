"""Train one layout on a text, with progress, held-out text, a log, and checkpoints."""

import argparse
from collections.abc import Callable
from typing import Any

from .. import data, launch, weights
from ..checkpoint import Checkpoint, Saver, load, resume
from ..config import Layout, ModelConfig, TrainConfig, as_dict, check
from ..errors import ConfigError
from ..report.console import job_console
from ..report.log import Log, header
from ..report.screen import Screen
from ..run import DIVERGED, Run
from ..sabotage.bugs import chosen
from ..sabotage.patch import applied
from ..train import Trainer
from ..weights import Source
from . import flags

EXAMPLES = """examples:
  tparallel train                                   one process, the text that comes with Python
  tparallel train --tp 2 --pp 2 --steps 200         four ranks: two stages of two ranks each
  tparallel train --ranks 4 --zero 3                four ranks, all data-parallel, ZeRO stage 3
  tparallel train --data book.txt --log run.jsonl   your own text; one JSON line per step
  tparallel train --weights gpt2 --T 256 --lr 1e-4 --data book.txt --export tuned   fine-tuning
  mpirun -n 8 python -m tparallel train --tp 2 --pp 2 --zero 1       under a launcher: dp = 2
  tparallel train --save run --save-every 50        a checkpoint every 50 steps, and at the end
  tparallel train --save run --resume --pp 2        go on from the newest, in any layout

Ctrl-C and SIGTERM end the run after the step that is under way: with --save a checkpoint is
written, the log is complete, the exit code is 130 or 143.  A loss that is no longer finite ends
it too, with exit code 1.  A job that may be ended at any time runs with --save DIR --resume
always: it begins at the beginning, or goes on.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    run = parser.add_argument_group("run")
    run.add_argument(
        "--data",
        nargs="+",
        metavar="FILE",
        help="text files in any encoding, or topics (default: the reference text of Python's "
        "help) or stdlib (its sources)",
    )
    flags.add_weights(run)
    run.add_argument(
        "--export",
        metavar="DIR",
        help="a new folder for the weights at the end, in Hugging Face's format",
    )
    run.add_argument(
        "--log",
        metavar="FILE.jsonl",
        help="a new file: a header, then a line per step; --resume goes on in it",
    )
    run.add_argument(
        "--validate-every",
        type=int,
        default=50,
        metavar="N",
        help="steps between two looks at held-out text, the last tenth; also after the last "
        "step; 0 for never (default: 50)",
    )
    run.add_argument(
        "--validate-batches",
        type=int,
        default=8,
        metavar="N",
        help="global batches of held-out text in one look (default: 8)",
    )
    run.add_argument(
        "--check-replicas",
        type=int,
        default=0,
        metavar="N",
        help="steps between two comparisons of what must be equal on several ranks (default: 0, "
        "never)",
    )
    run.add_argument(
        "--break",
        dest="bug",
        metavar="BUG",
        help="put a known bug into the running program: see tparallel sabotage --list",
    )
    add_checkpoint_arguments(parser.add_argument_group("checkpoints"))
    flags.add_flags(parser, Layout, ModelConfig, TrainConfig)


def add_checkpoint_arguments(group: Any) -> None:
    group.add_argument(
        "--save", metavar="DIR", help="write checkpoints into this folder, one at the end too"
    )
    group.add_argument(
        "--save-every",
        type=int,
        default=100,
        metavar="N",
        help="steps between two checkpoints (default: 100)",
    )
    group.add_argument(
        "--keep",
        type=int,
        default=0,
        metavar="K",
        help="remove all but the newest K checkpoints of DIR (default: 0, none is removed)",
    )
    group.add_argument(
        "--async-save",
        action="store_true",
        help="train on while a copy of the state is written: takes its memory once more",
    )
    group.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="CHECKPOINT",
        help="go on from the newest whole checkpoint of --save DIR, or from the beginning where "
        "there is none; or from this checkpoint, or from the newest of this folder.  Model and "
        "training settings are the checkpoint's unless given; the layout is free",
    )


def main(args: argparse.Namespace) -> int:
    """One rank's part of the run; the exit code, the same on every rank."""
    bugs = chosen([args.bug]) if args.bug else []
    with applied(edit for bug in bugs for edit in bug.edits):
        return train_one(args)


def train_one(args: argparse.Namespace) -> int:
    """One rank's part of the run; the exit code, the same on every rank."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    _check(args)
    start, said = resume.chosen(args.resume, args.save, comm)
    folder = flags.weights(args, comm)
    model, train, said = _settings(args, folder, start, said)
    layout = flags.layout(args, train.global_batch, comm.size)
    check(model, train, layout, comm.size)
    if args.export:
        weights.check(model, args.export)
    corpus = data.load(args.data, model.V, flags.tokenizer(args, model.V, folder))
    corpus.check(model.T)
    data.agree(corpus, comm)
    first = folder.part if folder and not start else None
    trainer = Trainer(model, train, layout, comm, start=first)
    if start:
        resume.check_text(start, corpus)
        load(trainer, start)
    done = start.step if start else 0
    saver = _saver(args, trainer, corpus, done)
    goes_on = args.resume is not None
    log = Log(args.log, comm, header(model, train, layout, corpus, done), goes_on)
    screen = Screen(job_console(comm.rank), train.steps)
    screen.begin(model, train, layout, corpus, said)
    with launch.stopping() as asked, screen, log:
        run = Run(trainer, corpus, args, log, screen, lambda: _asked(asked, comm), saver, done)
        end = run.steps()
        if saver:
            saver.finish()
    screen.end(run.lines, args.log, run.why(end), saver.path if saver else None)
    if args.export and end != DIVERGED:
        beside = args.tokenizer or (folder.path if folder else None)
        weights.export_trainer(trainer, args.export, beside)
        screen.say(f"Weights: {args.export}")
    trainer.close()
    return end


def _asked(asked: Callable[[], int], comm: Any) -> int:
    """The signal that has asked any rank to stop, or 0."""
    from mpi4py import MPI

    return comm.allreduce(asked(), MPI.MAX)


def _settings(
    args: argparse.Namespace, folder: Source | None, start: Checkpoint | None, said: list[str]
) -> tuple[ModelConfig, TrainConfig, list[str]]:
    """Those of the flags; of a run that goes on, the checkpoint's where the flags say nothing."""
    model = folder.model if folder else flags.model_config(args)
    if not start:
        return model, flags.train_config(args), said
    whole = folder or "model" in args  # else some values of it
    given = as_dict(model) if whole else flags.given(args, ModelConfig)
    model, train, more = resume.settings(start, given, flags.given(args, TrainConfig))
    return model, train, said + more


def _saver(
    args: argparse.Namespace, trainer: Trainer, corpus: data.Corpus, done: int
) -> Saver | None:
    if not args.save:
        return None
    how = {"keep": args.keep, "background": args.async_save}
    return Saver(trainer, args.save, resume.text(corpus), done, **how)


def _check(args: argparse.Namespace) -> None:
    if args.validate_every < 0 or args.validate_batches < 1:
        raise ConfigError(
            "validation needs a number of steps and of batches: --validate-every "
            f"{args.validate_every}, --validate-batches {args.validate_batches}. "
            "Use 0 or more for the first (0: never), 1 or more for the second."
        )
    if args.save_every < 1 or args.keep < 0:
        raise ConfigError(
            f"checkpoints need a number of steps, and how many stay: --save-every "
            f"{args.save_every}, --keep {args.keep}. Use 1 or more for the first, 0 or more for "
            "the second (0: all)."
        )
    if args.async_save and not args.save:
        raise ConfigError("--async-save is about checkpoints: --save is not given. Use --save DIR.")
