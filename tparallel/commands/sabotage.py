"""Put known bugs into the running program: which checks notice, and does the loss curve?"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import Progress

from ..sabotage.bugs import GITHUB, Bug, chosen
from ..sabotage.curve import Moved, another_seed, moved
from ..sabotage.examine import examine
from ..sabotage.patch import diff
from ..verify.cases import case_of
from ..verify.measure import Answer
from ..verify.pool import Pool

EXAMPLES = """examples:
  tparallel sabotage                            every bug: about two minutes
  tparallel sabotage bias-times-tp tied-table   some of them
  tparallel sabotage --list                     what they are, as the lines that they change
  tparallel sabotage --markdown table.md        the table, as a page
  tparallel train --tp 2 --break bias-times-tp  train with a bug and watch it learn

Each bug was found in a real program; the reports are linked.  The modules that are broken here
do not know it: lines of theirs are exchanged while they run.
"""


class Found(NamedTuple):
    """What one bug did."""

    bug: Bug
    answers: dict[str, Answer]
    curve: Moved

    @property
    def red(self) -> list[str]:
        return [check for check, answer in self.answers.items() if not answer.holds]

    @property
    def caught(self) -> bool:
        return self.bug.caught_by in self.red


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", metavar="NAME", help="bugs (default: all)")
    parser.add_argument("--list", action="store_true", help="describe them and run nothing")
    parser.add_argument(
        "--steps", type=int, default=50, metavar="N", help="of the loss curves (default: 50)"
    )
    parser.add_argument("--markdown", metavar="FILE", help="write the table, with links")


def main(args: argparse.Namespace) -> int:
    from mpi4py import MPI

    bugs = chosen(args.names)
    console = Console(quiet=MPI.COMM_WORLD.rank > 0, soft_wrap=True, highlight=False)
    if args.list:
        for bug in bugs:
            console.print(*described(bug), "", sep="\n", markup=False)
        return 0
    with Pool(MPI.COMM_WORLD) as pool:
        if not pool.leads:
            return 0
        found = list(run(pool, bugs, args.steps))
        yardstick = pool.run(1, another_seed, args.steps)
    lines = markdown(found, yardstick, args.steps)
    if args.markdown:
        Path(args.markdown).write_text("\n".join(lines) + "\n")
    missed = [f.bug.name for f in found if not f.caught]
    console.print(summary(found, yardstick, missed))
    return 1 if missed else 0


def run(pool: Pool, bugs: list[Bug], steps: int) -> Iterator[Found]:
    """One by one, each with its line as soon as it is known."""
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"{'bug':28} {'layout':18} {'curve moves':>11}   red (error)", style="bold")
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(bugs))
        for bug in bugs:
            progress.update(task, description=f"{bug.name:28}")
            case = case_of(bug.layout)
            assert case is not None
            ranks = case.layout.ranks
            answers = pool.run(ranks, examine, bug)
            found = Found(bug, answers, pool.run(ranks, moved, bug, steps))
            red = ", ".join(f"{check} ({answers[check].error:.0e})" for check in found.red[:3])
            more = f" and {len(found.red) - 3} more" if len(found.red) > 3 else ""
            console.print(
                f"{bug.name:28} {case.layout.name:18} {found.curve.most:>10.2%}   "
                f"{red or 'nothing!'}{more}"
            )
            progress.advance(task)
            yield found


def summary(found: list[Found], yardstick: Moved, missed: list[str]) -> str:
    hidden = sum(f.curve.most < yardstick.most for f in found)
    return (
        f"\n{len(found) - len(missed)} of {len(found)} bugs are caught. {hidden} of them move the "
        f"loss curve less than another seed does ({yardstick.most:.1%})."
        + f" Not caught: {', '.join(missed)}."
        * bool(missed)
    )


def described(bug: Bug) -> Iterator[str]:
    yield f"{bug.name}: {bug.what}."
    yield from (f"    {line}" for line in diff(bug.edits))
    yield from (f"    {GITHUB}{report}" for report in bug.reports)


def markdown(found: list[Found], yardstick: Moved, steps: int) -> list[str]:
    """The table of the README: what it is, how much it shows, what notices."""
    lines = [
        f"| bug | what happens | loss curve moves in {steps} steps | what goes red first |",
        "|---|---|---:|---|",
    ]
    for bug, answers, curve in found:
        links = " ".join(f"[{i}]({GITHUB}{r})" for i, r in enumerate(bug.reports, 1))
        first = next((c for c, a in answers.items() if not a.holds), "nothing")
        error = f"{answers[first].error:.0e}" if first in answers else ""
        lines.append(f"| `{bug.name}` | {bug.what} {links} | {curve.most:.2%} | {first} {error} |")
    lines.append(f"| *another seed* | *nothing is wrong* | *{yardstick.most:.2%}* | |")
    return lines
