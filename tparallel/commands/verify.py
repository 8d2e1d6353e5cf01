"""Is every layout equal to one process?  Ask hundreds of cases, print a grid of answers."""

import argparse
import json
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from ..config import Layout, ModelConfig, TrainConfig
from ..report.log import versions
from ..verify import cases
from ..verify.grid import Verdict, as_json, complaints, explained_bounds, grids
from ..verify.measure import measure
from ..verify.pool import Pool
from ..verify.random_layouts import search
from . import flags

EXAMPLES = """examples:
  tparallel verify                          every layout up to 8 ranks: some minutes
  tparallel verify --quick                  a covering set up to 4 ranks: some seconds
  tparallel verify --random 500             cases that nobody has thought of: some minutes
  tparallel verify --json answers.json      every error and bound, for programs
  tparallel verify --tp 2 --pp 2 --dtype float64 --init random      one case of your own

Every layout is compared with one process: loss, every gradient, the norm before clipping, and,
after three steps, parameters, optimizer state and the loss of another batch.  Optimizer,
accumulation, tied tables, vocabulary and the rest are dealt out so that any two values meet.
Exit code 1 if anything differs by more than its bound.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    run = parser.add_argument_group("run")
    run.add_argument("--quick", action="store_true", help="a covering set on at most 4 ranks")
    run.add_argument(
        "--random",
        type=int,
        default=0,
        metavar="N",
        help="N cases drawn by hypothesis, legal ones and refused ones",
    )
    run.add_argument("--json", metavar="FILE", help="write every answer")
    flags.add_flags(parser, Layout, ModelConfig, TrainConfig)


def main(args: argparse.Namespace) -> int:
    from mpi4py import MPI

    with Pool(MPI.COMM_WORLD) as pool:
        if not pool.leads:
            return 0
        if args.random:
            return draw(pool, args.random)
        return report(ask(pool, chosen(args, pool.comm.size)), args.json)


def draw(pool: Pool, cases_: int) -> int:
    """Random cases; a counter-example is shrunk and printed as one command."""
    found = search(pool, cases_, pool.comm.size)
    print(found or f"{cases_} random cases: equal to one process, or refused as they should be")
    return 1 if found else 0


def chosen(args: argparse.Namespace, ranks: int) -> list[cases.Case]:
    """The case of the flags; else the matrix, on as many ranks as there are."""
    given = {f: v for f, v in vars(args).items() if f in flags.HELP}
    if given:
        return [cases.configs(cases.FIXED | {"dp": 1} | given)]
    ranks = min(ranks, 4) if args.quick else ranks
    if args.quick:
        return cases.covering_cases(ranks) + cases.covering_cases(min(ranks, 2), cases.SINGLE)
    return cases.every_case(ranks) + cases.covering_cases(ranks, cases.SINGLE)


def ask(pool: Pool, todo: list[cases.Case]) -> list[Verdict]:
    """Every case, with progress, on rank 0."""
    per_ranks = sorted(Counter(case.layout.ranks for case in todo).items())
    counts = ", ".join(f"{n} on {ranks}" for ranks, n in per_ranks)
    print(f"{len(todo)} cases: {counts} ranks", flush=True)
    found = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(todo))
        for case in todo:
            progress.update(task, description=f"{case.layout.name:40.40}")
            found.append(Verdict(case, pool.run(case.layout.ranks, measure, case)))
            progress.advance(task)
    return found


def report(verdicts: list[Verdict], file: str | None = None) -> int:
    """Print the grids, how the bounds came about, and what does not hold; 1 if there is any."""
    console = Console(soft_wrap=True)
    for table in grids(verdicts):
        console.print(table, "")
    red = [verdict for verdict in verdicts if not verdict.holds]
    for line in (*explained_bounds(verdicts), *(c for v in red for c in complaints(v))):
        console.print(line, highlight=False)
    quantities = sum(len(v.answers) for v in verdicts)
    console.print(
        f"{len(verdicts) - len(red)} of {len(verdicts)} cases agree with one process "
        f"({quantities} comparisons)."
    )
    if file:
        answers = [as_json(verdict) for verdict in verdicts]
        Path(file).write_text(json.dumps({**versions(), "cases": answers}, indent=1))
    return 1 if red else 0
