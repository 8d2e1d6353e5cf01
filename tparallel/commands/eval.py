"""The loss of a model on a text or on rows of tokens, and its logits, in any layout."""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import exp

import numpy as np
from rich.console import Console
from rich.progress import Progress

from .. import data
from ..config import Layout, ModelConfig, TrainConfig, as_dict
from ..errors import ConfigError, DataError
from ..evaluate import Evaluator, next_tokens, rows_of
from ..report.console import job_console
from ..report.files import check_place, logits_file, write
from ..report.log import versions
from ..serial.parameters import count
from ..train import Trainer
from . import flags

EXAMPLES = """examples:
  tparallel eval --weights gpt2 --data book.txt         loss, bits per byte, perplexity
  tparallel eval --weights gpt2 --data book.txt --tp 2 --pp 2
  tparallel eval --weights gpt2 --tokens ids.npy --logits out.npy --dtype float64
  tparallel eval --weights gpt2 --tokens ids.npy --json answer.json

--data: every token of the text but the first is a target once; the rows stand one after the other
and do not see each other.  --tokens: a NumPy file, (B, T) integers; each row stands alone, so that
it has T - 1 targets.  Rows may be shorter than the model's T, and any number of them goes through
any layout.  Without --weights the reference model is asked, as it is before training.
"""


USUAL_ROWS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    run = parser.add_argument_group("run")
    flags.add_weights(run)
    run.add_argument(
        "--data", nargs="+", metavar="FILE", help="text files, topics (the default) or stdlib"
    )
    run.add_argument("--tokens", metavar="FILE.npy", help="token ids (B, T) instead of a text")
    run.add_argument(
        "--logits",
        metavar="FILE.npy",
        help="of --tokens: where to write (B, T, V), in the dtype (of halves: float32)",
    )
    run.add_argument("--json", metavar="FILE", help="where to write the answer, too")
    for name, kind, default, shown in (
        ("dtype", str, "float32", "float32"),
        ("global_batch", int, 0, f"{USUAL_ROWS}, or fewer if there are fewer rows"),
        ("seed", int, 0, "0"),
        ("init", str, "gpt2", "gpt2"),
    ):
        about = "sequences at once, over all ranks" if kind is int and shown != "0" else ""
        run.add_argument(
            "--" + name.replace("_", "-"),
            type=kind,
            default=default,
            metavar="N" if kind is int else "NAME",
            help=f"{about or flags.HELP[name]} (default: {shown})",
        )
    flags.add_flags(parser, Layout, ModelConfig)


def main(args: argparse.Namespace) -> int:
    """One rank's part of the work; the exit code, the same on every rank."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    if args.logits and not args.tokens:
        raise ConfigError(
            f"logits are those of rows of tokens: --logits {args.logits} without --tokens. Give "
            "both, or neither."
        )
    for path in filter(None, (args.logits, args.json)):
        check_place(path, comm)
    rows = read_tokens(args) if args.tokens else None
    source = flags.weights(args, comm)
    model = source.model if source else flags.model_config(args)
    corpus = None
    if rows is None:
        corpus = data.load(args.data, model.V, flags.tokenizer(args, model.V, source))
        data.agree(corpus, comm)
        tokens, targets = rows_of(corpus.tokens, model.T)
    else:
        check_ids(rows, model.V, args.tokens)
        tokens, targets = rows, next_tokens(rows)
    layout, train = configs(args, len(tokens), comm.size)
    start = source.part if source else None
    trainer = Trainer(model, train, layout, comm, start=start, learns=False)
    console = job_console(comm.rank)
    say = lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True)  # noqa: E731
    say(f"model   {args.weights or 'before training'}: {count(model):,} parameters, {train.dtype}")
    say(f"layout  {layout.name}")
    say(f"rows    {len(tokens)} of {model.T} tokens, {train.global_batch} at once")
    shape = (*tokens.shape, model.V)
    with (
        logits_file(args.logits, shape, train.compute_dtype, comm.rank) as take,
        progress(console, len(tokens)) as done,
    ):
        total = Evaluator(trainer).loss(tokens, targets, take, done)
    trainer.close()
    found = answer(total, targets, corpus)
    say(sentence(found))
    if args.json and comm.rank == 0:
        about = {"model": as_dict(model), "layout": as_dict(layout), "dtype": train.dtype}
        about["data"] = corpus.identity() if corpus else args.tokens
        write(args.json, json.dumps({**found, **versions(), **about}, indent=2) + "\n")
    return 0


def configs(args: argparse.Namespace, rows: int, ranks: int) -> tuple[Layout, TrainConfig]:
    """The layout, and as many rows at once as there are, up to a usual number that it can cut."""
    layout = flags.layout(args, args.global_batch or USUAL_ROWS, ranks)
    cut = layout.dp * layout.microbatches
    at_once = args.global_batch or -(-min(USUAL_ROWS, rows) // cut) * cut
    return layout, TrainConfig(
        global_batch=at_once, dtype=args.dtype, seed=args.seed, init=args.init
    )


def answer(total: float, targets: np.ndarray, corpus: data.Corpus | None) -> dict:
    """From the sum of the losses (nats): what a person asks for; None without a target."""
    counted = targets[targets >= 0]
    if not counted.size:
        return {"loss": None, "perplexity": None, "targets": 0}
    loss = total / counted.size
    out = {"loss": loss, "perplexity": exp(min(loss, 700.0)), "targets": counted.size}
    if corpus:
        out["bits_per_byte"] = data.bits_per_byte(loss, counted, corpus.sizes)
    return out


def sentence(found: dict) -> str:
    if found["loss"] is None:
        return "no loss: rows of one token have no next one"
    bits = f", {found['bits_per_byte']:.6f} bits per byte" if "bits_per_byte" in found else ""
    return (
        f"loss {found['loss']:.10g} nats per token over {found['targets']:,} targets{bits}, "
        f"perplexity {found['perplexity']:.6g}"
    )


def read_tokens(args: argparse.Namespace) -> np.ndarray:
    """(B, T) int64; the model's T becomes theirs.  Errors: DataError, ConfigError."""
    try:
        ids = np.load(args.tokens, allow_pickle=False)
    except (OSError, ValueError) as e:
        raise DataError(
            f"--tokens must be a NumPy file of integers: {args.tokens!r}: {e}. Write it with "
            "numpy.save."
        ) from None
    if ids.ndim != 2 or ids.size == 0 or not np.issubdtype(ids.dtype, np.integer):
        raise DataError(
            f"--tokens must be integers of shape (B, T): {args.tokens!r} has {ids.dtype} "
            f"{ids.shape}. Use ids.reshape(1, -1) for one row."
        )
    if getattr(args, "T", ids.shape[1]) != ids.shape[1]:
        raise ConfigError(
            f"the rows say how long they are: --T {args.T}, rows of {ids.shape[1]} tokens. "
            "Leave --T away."
        )
    args.T = ids.shape[1]
    return ids.astype(np.int64)


def check_ids(rows: np.ndarray, V: int, name: str) -> None:
    low, high = int(rows.min()), int(rows.max())
    if low < 0 or high >= V:
        raise DataError(
            f"token ids must lie in the vocabulary: {name} has ids from {low} to {high}, V = {V}. "
            f"Use ids from 0 to {V - 1}."
        )


@contextmanager
def progress(console: Console, rows: int) -> Iterator[Callable[[int], None]]:
    """A bar, where there is a terminal; what it yields is told how many rows are done."""
    hidden = not console.is_terminal or console.quiet
    with Progress(console=console, transient=True, auto_refresh=False, disable=hidden) as bar:
        task = bar.add_task("rows", total=rows)
        yield lambda done: bar.update(task, completed=done, refresh=True)
