"""Train one layout on a text, with progress, validation on held-out text, and a log."""

import argparse
import math
import time
from collections.abc import Callable
from statistics import median

import numpy as np
from rich.console import Console

from .. import data, launch
from ..config import Layout, ModelConfig, TrainConfig, as_dict, check
from ..report.log import Log, versions
from ..report.screen import Screen
from ..serial.adamw import learning_rate
from ..serial.parameters import count
from ..train import Trainer
from . import flags

EXAMPLES = """examples:
  tparallel train                                   one process, the text that comes with Python
  tparallel train --tp 2 --pp 2 --steps 200         four ranks: two stages of two ranks each
  tparallel train --ranks 4 --zero 3                four ranks, all data-parallel, ZeRO stage 3
  tparallel train --data book.txt --log run.jsonl   your own text; one JSON line per step
  mpirun -n 8 python -m tparallel train --tp 2 --pp 2 --zero 1       under a launcher: dp = 2

Ctrl-C ends the run after the step that is under way: the log is complete, the exit code 130.
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
    run.add_argument("--log", metavar="FILE.jsonl", help="write a header and a line per step")
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
    flags.add_flags(parser, Layout, ModelConfig, TrainConfig)


def main(args: argparse.Namespace) -> int:
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    model, train = flags.model_config(args), flags.train_config(args)
    layout = flags.layout(args, train.global_batch, comm.size)
    check(model, train, layout, comm.size)
    corpus = data.load(args.data, model.V)
    corpus.check(model.T)
    data.agree(corpus, comm)
    trainer = Trainer(model, train, layout, comm)
    log = Log(args.log, comm)
    log.write(header(model, train, layout, corpus))
    screen = Screen(Console(quiet=comm.rank > 0), train.steps)
    screen.say(*summary(model, train, layout, corpus), "")
    try:
        with launch.stopping() as asked, screen:
            end, lines = loop(trainer, corpus, args, log, screen, lambda: comm.allreduce(asked()))
    finally:
        log.close()
    screen.say("", *ended(end, lines, args.log))
    trainer.close()
    return end


def loop(
    trainer: Trainer,
    corpus: data.Corpus,
    args: argparse.Namespace,
    log: Log,
    screen: Screen,
    stop: Callable[[], int],
) -> tuple[int, list[dict]]:
    """Every step: one batch, one update, one line.  Returns how it ended, and the lines."""
    model, train, lines = trainer.model, trainer.train, []
    for step in range(train.steps):
        launch.at(f"step {step + 1}")
        tokens, targets = corpus.batch(step, train.global_batch, model.T, train.seed)
        start = time.perf_counter()
        with np.errstate(over="ignore", invalid="ignore"):  # said below, once and with the step
            loss, norm = trainer.step(step, tokens, targets)
        seconds = time.perf_counter() - start
        line = {
            "step": step + 1,
            "loss": loss,
            "bits_per_byte": data.bits_per_byte(loss, targets),
            "gradient_norm": norm,
            "learning_rate": learning_rate(step, train),
            "seconds": seconds,
            "tokens_per_second": tokens.size / seconds,
        }
        lines.append(line)
        diverged, stopped = not math.isfinite(loss + norm), bool(stop())
        last = step + 1 == train.steps
        due = args.validate_every and ((step + 1) % args.validate_every == 0 or last)
        if due and not (diverged or stopped):
            stopped = validate(trainer, corpus, args.validate_batches, line, screen, stop)
        log.write(line)
        screen.step(line)
        if diverged or stopped:
            return DIVERGED if diverged else INTERRUPTED, lines
    return FINISHED, lines


def validate(trainer: Trainer, corpus, batches: int, line: dict, screen, stop) -> bool:
    """Puts the loss on held-out text into ``line``; True if it was asked to stop before."""
    G, T = trainer.train.global_batch, trainer.model.T
    batches = max(1, min(batches, corpus.validation_rows(T) // G))
    total, seen = 0.0, []
    for k in range(batches):
        screen.validating(k + 1, batches)
        tokens, targets = corpus.validation(k, G, T)
        total += trainer.evaluate(tokens, targets)
        seen.append(targets)
        if stop():
            return True
    line["validation_loss"] = total / batches
    line["validation_bits_per_byte"] = data.bits_per_byte(total / batches, np.stack(seen))
    return False


def header(model, train, layout, corpus) -> dict:
    """The first line of the log: all that the run depends on."""
    return {
        **versions(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "ranks": layout.ranks,
        "parameters": count(model),
        "model": as_dict(model),
        "layout": as_dict(layout),
        "train": as_dict(train),
        "data": corpus.identity(),
    }


def summary(model, train, layout, corpus) -> list[str]:
    """What is about to be trained, on what, by whom."""
    sizes = "  ".join(f"{letter} {getattr(model, letter)}" for letter in "LDHTVF")
    M = f", M = {layout.microbatches}" if layout.microbatches > 1 else ""
    ranks = "1 rank" if layout.ranks == 1 else f"{layout.ranks} ranks"
    return [
        f"model   {sizes}{'  tied' if model.tied else ''}: {count(model):,} parameters, "
        f"{train.dtype}",
        f"layout  {layout.name} on {ranks}{M}; {train.global_batch} sequences of {model.T} "
        "tokens per step",
        f"text    {corpus.name}: {corpus.size:,} bytes, sha256 {corpus.sha256[:12]}",
    ]


def ended(end: int, lines: list[dict], log: str | None) -> list[str]:
    """How it ended, in plain sentences."""
    first, last = lines[0], lines[-1]
    n = last["step"]
    speed = median(line["tokens_per_second"] for line in lines)
    said = [
        f"{n} steps: the loss went from {first['loss']:.4f} to {last['loss']:.4f} nats per token "
        f"({last['bits_per_byte']:.4f} bits per byte), at {speed:,.0f} tokens/s."
    ]
    if "validation_loss" in last:
        said.append(
            f"Held-out text: {last['validation_loss']:.4f} nats per token, "
            f"{last['validation_bits_per_byte']:.4f} bits per byte."
        )
    if end == DIVERGED:
        said.append(
            f"Stopped: the loss and the gradient norm must stay finite; at step {n} they are "
            f"{last['loss']} and {last['gradient_norm']}. Use a smaller --lr, a longer --warmup, "
            "or --clip 1."
        )
    if end == INTERRUPTED:
        said.append(f"Interrupted: ended after step {n}, as asked.")
    return [*said, f"Log: {log}"] if log else said
