"""Train one layout on a text, with progress, validation on held-out text, and a log."""

import argparse
import math
import time
from collections.abc import Callable

import numpy as np

from .. import data, launch, weights
from ..config import Layout, ModelConfig, TrainConfig, check
from ..errors import ConfigError, NotFiniteError, ReplicaError
from ..report.console import job_console
from ..report.log import Log, header
from ..report.screen import Screen
from ..sabotage.bugs import chosen
from ..sabotage.patch import applied
from ..serial.adamw import learning_rate
from ..train import Trainer
from ..verify import replicas
from . import flags

EXAMPLES = """examples:
  tparallel train                                   one process, the text that comes with Python
  tparallel train --tp 2 --pp 2 --steps 200         four ranks: two stages of two ranks each
  tparallel train --ranks 4 --zero 3                four ranks, all data-parallel, ZeRO stage 3
  tparallel train --data book.txt --log run.jsonl   your own text; one JSON line per step
  tparallel train --weights gpt2 --T 256 --lr 1e-4 --data book.txt --export tuned   fine-tuning
  mpirun -n 8 python -m tparallel train --tp 2 --pp 2 --zero 1       under a launcher: dp = 2

Ctrl-C ends the run after the step that is under way: the log is complete, the exit code 130.
A loss that is no longer finite ends it too, with exit code 1.
"""
FINISHED, DIVERGED, INTERRUPTED = 0, 1, 130  # how a run ends, as its exit code


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
        "--log", metavar="FILE.jsonl", help="a new file: a header, then a line per step"
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
    flags.add_flags(parser, Layout, ModelConfig, TrainConfig)


def main(args: argparse.Namespace) -> int:
    """One rank's part of the run; the exit code, the same on every rank."""
    bugs = chosen([args.bug]) if args.bug else []
    with applied(edit for bug in bugs for edit in bug.edits):
        return train_one(args)


def train_one(args: argparse.Namespace) -> int:
    """One rank's part of the run; the exit code, the same on every rank."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    train, folder = flags.train_config(args), flags.weights(args)
    model = folder.model if folder else flags.model_config(args)
    layout = flags.layout(args, train.global_batch, comm.size)
    check(model, train, layout, comm.size)
    if args.validate_every < 0 or args.validate_batches < 1:
        raise ConfigError(
            "validation needs a number of steps and of batches: --validate-every "
            f"{args.validate_every}, --validate-batches {args.validate_batches}. "
            "Use 0 or more for the first (0: never), 1 or more for the second."
        )
    if args.export:
        weights.check(model, args.export)
    corpus = data.load(args.data, model.V, folder.tokenizer() if folder else None)
    corpus.check(model.T)
    data.agree(corpus, comm)
    trainer = Trainer(model, train, layout, comm, start=folder.part if folder else None)
    log = Log(args.log, comm)
    log.write(header(model, train, layout, corpus))
    screen = Screen(job_console(comm.rank), train.steps)
    screen.begin(model, train, layout, corpus)
    with launch.stopping() as asked, screen, log:
        run = Run(trainer, corpus, args, log, screen, lambda: bool(comm.allreduce(asked())))
        end = run.steps()
    screen.end(run.lines, args.log, run.why(end))
    if args.export and end != DIVERGED:
        weights.export_trainer(trainer, args.export, folder)
        screen.say(f"Weights: {args.export}")
    trainer.close()
    return end


class Run:
    """The steps of one training run: batch, update, line."""

    def __init__(
        self,
        trainer: Trainer,
        corpus: data.Corpus,
        args: argparse.Namespace,
        log: Log,
        screen: Screen,
        stop: Callable[[], bool],  # was any rank asked to stop?  the same answer on all
    ):
        self.trainer, self.corpus, self.args = trainer, corpus, args
        self.log, self.screen, self.stop = log, screen, stop
        self.lines: list[dict] = []
        self.blame = ""  # where the first number arose that is not finite

    def steps(self) -> int:
        """All of them, or until something ends them: FINISHED, DIVERGED or INTERRUPTED."""
        every, last = self.args.validate_every, self.trainer.train.steps
        for number in range(1, last + 1):
            launch.at(f"step {number}")
            line = self.step(number)
            diverged = not self.finite(line)
            stopped = self.stop()
            if every and (number % every == 0 or number == last) and not (diverged or stopped):
                stopped = self.validate(line)
            self.lines.append(line)
            self.log.write(line)
            self.screen.step(line)
            if diverged or stopped:
                return DIVERGED if diverged else INTERRUPTED
        return FINISHED

    def step(self, number: int) -> dict:
        """Update ``number``, from batch ``number`` − 1; the line for the log."""
        train, T, step = self.trainer.train, self.trainer.model.T, number - 1
        tokens, targets = self.corpus.batch(step, train.global_batch, T, train.seed)
        start = time.perf_counter()
        with np.errstate(over="ignore", invalid="ignore"):  # said once, with the step, by why()
            loss, norm = self.update(step, tokens, targets)
        seconds = time.perf_counter() - start
        return {
            "step": number,
            "loss": loss,
            "bits_per_byte": data.bits_per_byte(loss, targets, self.corpus.sizes),
            "gradient_norm": norm,
            "learning_rate": learning_rate(step, train),
            "seconds": seconds,
            "tokens_per_second": tokens.size / seconds,
        }

    def update(self, step: int, tokens: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
        """Loss and gradient norm; where they are not finite, nothing has been updated."""
        try:
            loss, norm = self.trainer.step(step, tokens, targets)
        except NotFiniteError as e:
            self.blame = str(e)
            return e.loss, e.norm
        every = self.args.check_replicas
        if every and (step + 1) % every == 0:
            try:
                replicas.check(self.trainer, step, tokens, targets)
            except ReplicaError as e:
                raise SystemExit(f"ReplicaError: {e}") from None
        return loss, norm

    def finite(self, line: dict) -> bool:
        """Can training go on?  float16 skips an update whose scaled gradients overflow."""
        overflow_is_fine = self.trainer.train.dtype == "float16"
        return math.isfinite(line["loss"] + (0 if overflow_is_fine else line["gradient_norm"]))

    def validate(self, line: dict) -> bool:
        """Put the loss on held-out text into ``line``; True if asked to stop before it is known."""
        G, T = self.trainer.train.global_batch, self.trainer.model.T
        batches = max(1, min(self.args.validate_batches, self.corpus.validation_rows(T) // G))
        total, seen = 0.0, []
        for k in range(batches):
            self.screen.validating(k + 1, batches)
            tokens, targets = self.corpus.validation(k, G, T)
            total += self.trainer.evaluate(tokens, targets)
            seen.append(targets)
            if self.stop():
                return True
        line["validation_loss"] = total / batches
        bits = data.bits_per_byte(total / batches, np.stack(seen), self.corpus.sizes)
        line["validation_bits_per_byte"] = bits
        return False

    def why(self, end: int) -> str:
        """Why the run ended before its last step."""
        last = self.lines[-1]
        if end == INTERRUPTED:
            return f"Interrupted: ended after step {last['step']}, as asked."
        if end == DIVERGED:
            return (
                "Stopped: the loss and the gradient norm must stay finite; at step "
                f"{last['step']} they are {last['loss']} and {last['gradient_norm']}. Use a "
                "smaller --lr, a longer --warmup, or --clip 1. Nothing was updated in it. "
                f"({self.blame})"
            )
        return ""
