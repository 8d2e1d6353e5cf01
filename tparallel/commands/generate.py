"""New text behind prompts, from a model's weights or a checkpoint, in any layout."""

import argparse
import json
from typing import Any

from rich.console import Console

from ..config import Layout, ModelConfig, TrainConfig, replace
from ..data import END
from ..errors import ConfigError, DataError
from ..generate import Generated, Generator, Rule
from ..generate.rows import Rows, check, rows_each
from ..generate.text import Stream, Words
from ..predict import generation
from ..report.console import job_console
from ..report.files import check_place, write
from ..serial.parameters import count
from ..train import Trainer
from . import flags

EXAMPLES = """examples:
  tparallel generate --weights gpt2 --prompt "The cat"                  greedy, 64 new tokens
  tparallel generate --weights gpt2 --prompt "The cat" --tp 2 --pp 2    the same text, on four ranks
  tparallel generate --weights run --prompt "def " --temperature 0.8 --top-p 0.95 --seed 1
  tparallel generate --weights gpt2 --prompt "One" "Two" "Three" --pp 2 --microbatches 2
  tparallel generate --weights gpt2 --tokens prompts.json --max-new 12 --json new.json

--weights: a folder in Hugging Face's format, or a checkpoint of train --save.  The text goes to the
standard output while it comes, everything else to the standard error.  --tokens: a file with a list
of lists of ids, as long as they like; --json gets a list of lists of the new ones, which no stop
token ends unless --stop names it.  The tokens do not depend on the layout: a random number belongs
to the seed, the prompt's number, the position and the token's id.
"""
LAYOUT = ("tp", "pp", "dp", "zero", "microbatches", "cut")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    run = parser.add_argument_group("run")
    flags.add_weights(run)
    run.add_argument("--prompt", nargs="+", metavar="TEXT", help="what the new tokens go on with")
    run.add_argument("--tokens", metavar="FILE.json", help="prompts as lists of ids, instead")
    run.add_argument("--json", metavar="FILE", help="where to write the new ids, too")
    for flag, kind, default, about in (
        ("max-new", int, 64, "new tokens for each prompt, at most"),
        ("temperature", float, 0.0, "what logits are divided by; 0 for greedy"),
        ("top-k", int, 0, "draw from the k most probable tokens; 0 for all"),
        ("top-p", float, 1.0, "draw from the fewest tokens that have this probability together"),
        ("seed", int, 0, "of the random numbers"),
        ("dtype", str, "float32", flags.HELP["dtype"]),
    ):
        run.add_argument(
            f"--{flag}",
            type=kind,
            default=default,
            metavar={int: "N", float: "X", str: "NAME"}[kind],
            help=f"{about} (default: {default})",
        )
    run.add_argument(
        "--stop",
        type=int,
        metavar="ID",
        help="a row ends with this token (default: the model's end of text; with --tokens none)",
    )
    run.add_argument(
        "--cache",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep keys and values; without, each token is made from the whole text (default: yes)",
    )
    flags.add_flags(parser, Layout, only=LAYOUT)


def main(args: argparse.Namespace) -> int:
    """One rank's part of the work; the exit code, the same on every rank."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    rule = Rule(args.temperature, args.top_k, args.top_p, args.seed)
    _check(args)
    if args.json:
        check_place(args.json, comm)
    source = flags.weights(args, comm)
    assert source  # _check has seen to it
    model = source.model
    prompts, words, stop = _prompts(args, model, source)
    check(prompts, args.max_new, model)
    layout, train = configs(args, len(prompts), comm.size)
    trainer = Trainer(model, train, layout, comm, start=source.part, learns=False)
    console = job_console(comm.rank, stderr=True)
    say(console, f"model   {args.weights}: {count(model):,} parameters, {train.dtype}")
    say(console, f"layout  {layout.name}")
    stream = Stream(words, prompts) if words and comm.rank == 0 else None
    found = Generator(trainer, rule, args.cache).run(
        prompts, args.max_new, stop, lambda batches, m: _show(stream, batches, args.max_new)
    )
    if stream:
        for number, ids in enumerate(found.ids):
            stream.tell(number, ids, True)
    if comm.rank == 0 and not (words or args.json):
        print(json.dumps(found.ids), flush=True)
    if args.json and comm.rank == 0:
        write(args.json, json.dumps(found.ids) + "\n")
    report(console, trainer, rule, found, [len(p) for p in prompts], args)
    trainer.close()
    return 0


def configs(args: argparse.Namespace, prompts: int, ranks: int) -> tuple[Layout, TrainConfig]:
    """The layout, with as many micro-batches as keep its stages busy, and rows for all prompts."""
    layout = flags.layout(args, 1, ranks)
    if not hasattr(args, "microbatches"):
        layout = replace(layout, microbatches=min(layout.pp, -(-prompts // layout.dp)))
    rows = rows_each(prompts, layout) * layout.dp * layout.microbatches
    return layout, TrainConfig(global_batch=rows, dtype=args.dtype)


def report(
    console: Console,
    trainer: Trainer,
    rule: Rule,
    found: Generated,
    lengths: list[int],
    args: argparse.Namespace,
) -> None:
    """How fast it was, and what was sent and held, beside the closed forms."""
    comm, layout, new = trainer.mesh.comm, trainer.layout, args.max_new
    ranks = comm.gather((trainer.mesh.coords, found))
    if ranks is None:
        return
    steps = [next(g.steps for at, g in ranks if at.dp == d) for d in range(layout.dp)]
    made = sum(map(len, found.ids))
    prefill, decode = (max(g.seconds[part] for _, g in ranks) for part in (0, 1))
    say(console, f"prefill {rate(sum(lengths), prefill)}: {len(lengths)} prompts")
    if made > len(lengths):
        passes = max(max(of) for of in steps) - 1
        say(
            console,
            f"decode  {rate(made - len(lengths), decode)}, {1e3 * decode / passes:.1f} ms for one "
            f"of every row; a rank computes nothing {max(g.idle for _, g in ranks):.0%} of it"
            + f", {generation.idle(layout):.0%} by the schedule"
            * (layout.pp > 1),
        )
    if not args.cache:
        return
    k = rule.candidates(trainer.model.V)
    about = trainer.model, trainer.train, layout, lengths, new
    predicted = generation.wire(*about, k, steps)[1]
    for axis, sent in predicted.items():
        most = max(g.wire[1][axis] for _, g in ranks)
        if most or max(sent):
            each = max(1, made - len(lengths))
            say(
                console,
                f"sent    {axis}: {most / each:,.1f} bytes per new token by the busiest rank "
                f"(closed form {max(sent) / each:,.1f})",
            )
    held, formula = max(g.cache for _, g in ranks), max(generation.cache(*about))
    say(console, f"cache   {held:,} bytes of keys and values on a rank (closed form {formula:,})")


def rate(tokens: int, seconds: float) -> str:
    return f"{tokens:,} tokens in {seconds:.3f} s, {tokens / max(seconds, 1e-9):,.1f} tokens/s"


def say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _check(args: argparse.Namespace) -> None:
    if not args.weights:
        raise ConfigError(
            "generation needs a model: there is no --weights. Use --weights DIR, a folder in "
            "Hugging Face's format or a checkpoint of tparallel train --save DIR."
        )
    if bool(args.prompt) == bool(args.tokens):
        raise ConfigError(
            "prompts are texts or ids: give one of --prompt and --tokens, and not both. Use "
            "--prompt TEXT."
        )


def _prompts(
    args: argparse.Namespace, model: ModelConfig, source: Any
) -> tuple[list[list[int]], Words | None, int | None]:
    """Ids, what turns them into text (None for --tokens), and the token that ends a row."""
    if args.stop is not None and not 0 <= args.stop < model.V:
        raise ConfigError(
            f"a stop token must be in the vocabulary: --stop {args.stop}, V = {model.V}. Use one "
            f"of 0 to {model.V - 1}."
        )
    if args.tokens:
        return read_ids(args.tokens), None, args.stop
    tokenizer = flags.tokenizer(args, model.V, source)
    words = Words(tokenizer, model.V)
    end = tokenizer.end if tokenizer else END if model.V > END else None
    ids = [words.ids(text, f"prompt {i}") for i, text in enumerate(args.prompt)]
    return ids, words, end if args.stop is None else args.stop


def read_ids(path: str) -> list[list[int]]:
    """A list of lists of integers.  Errors: DataError."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError) as e:
        raise DataError(
            f"--tokens must be a JSON file of lists of ids: {path!r}: {e}. Use the form "
            "[[1, 2, 3], [4]]."
        ) from None
    lists = isinstance(found, list) and all(isinstance(row, list) for row in found)
    if not (lists and all(type(i) is int for row in found for i in row)):
        raise DataError(
            f"--tokens must be a list of lists of integers: {path!r} is none. Use the form "
            "[[1, 2, 3], [4]]."
        )
    return found


def _show(stream: Stream | None, batches: list[Rows], new: int) -> None:
    """On rank 0: whatever can be shown by now of the prompts whose rows are here."""
    if not stream:
        return
    for rows in batches:
        for row, number in enumerate(rows.numbers):
            if number == stream.now and number < len(stream.prompts) and rows.steps:
                ids = rows.new(row)
                stream.tell(number, ids, bool(rows.done[row]) or len(ids) == new)
