"""The answers as a grid: a row per method, a column per quantity, ✓ or ✗ and the worst error."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from .bounds import condition, gamma, longest_sum
from .cases import Case
from .measure import Answer
from .seen import QUANTITIES


class Verdict(NamedTuple):
    """A case and its answers."""

    case: Case
    answers: dict[str, Answer]

    @property
    def holds(self) -> bool:
        return all(answer.holds for answer in self.answers.values())


def grids(verdicts: list[Verdict]) -> Iterator[Table]:
    """One grid by method, and one by every other axis and factor together."""
    yield grid("method", verdicts, lambda case: [method(case)])
    yield grid("with", verdicts, _others)


def grid(title: str, verdicts: list[Verdict], rows_of: Callable[[Case], list[str]]) -> Table:
    table = Table(title, "cases", *QUANTITIES, box=None, pad_edge=False, header_style="bold")
    rows: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        for row in rows_of(verdict.case):
            rows.setdefault(row, []).append(verdict)
    for row, found in sorted(rows.items()):
        cells = [_cell([v.answers[q] for v in found if q in v.answers]) for q in QUANTITIES]
        table.add_row(row, str(len(found)), *cells)
    return table


def method(case: Case) -> str:
    """``dp, tp x dp ZeRO-1, ...``: the axes that are used, and the ZeRO stage."""
    layout = case.layout
    axes = " × ".join(a for a in ("tp", "pp", "dp") if getattr(layout, a) > 1)
    return (axes or "one rank") + (f"  ZeRO-{layout.zero}" if layout.zero else "")


def _others(case: Case) -> list[str]:
    """Every value that is not a size: ``schedule gpipe``, ``tables tied``, ``dtype float32``."""
    sizes = ("tp", "pp", "dp", "zero")
    chosen = [f"{name} {value}" for name, value in case.row if name not in sizes and value]
    return [*chosen, f"dtype {case.train.dtype}"]


def _cell(answers: list[Answer]) -> Text:
    if not answers:
        return Text("")
    worst = max(answers, key=lambda a: (not a.holds, a.error))
    sign, style = ("✓", "green") if worst.holds else ("✗", "bold red")
    return Text(f"{sign} {worst.error:.0e}" if worst.error else f"{sign} 0", style)


def complaints(verdict: Verdict) -> Iterator[str]:
    """What does not hold, and the command that asks for this case alone."""
    for quantity, answer in verdict.answers.items():
        if not answer.holds:
            place = f" at {answer.where}" if answer.where else ""
            yield (
                f"{verdict.case.layout.name}: {quantity} differs by {answer.error:.1e}{place}; "
                f"the bound is {answer.bound:.1e}."
            )
    yield f"    ask again: {verdict.case.command}"


def explained_bounds(verdicts: list[Verdict]) -> Iterator[str]:
    """The bounds, and for float32 where they come from."""
    wide = [v for v in verdicts if v.case.train.dtype == "float64"]
    single = [v for v in verdicts if v.case.train.dtype == "float32"]
    if wide:
        yield "float64 bounds: 1e-12; parameters and optimizer state of AdamW 1e-10"
    if single:
        worst = max(single, key=lambda v: v.answers["gradients"].bound).case
        known, n = condition(worst.model, worst.train), longest_sum(worst.model, worst.train)
        parts = ", ".join(f"{q} {known[q] * gamma(n):.0e} ({known[q]:.1f})" for q in known)
        yield f"float32 bounds (condition) × γ_{n}, γ_{n} = {gamma(n):.1e}, at most: {parts}"


def as_json(verdict: Verdict) -> dict:
    return {
        "layout": verdict.case.layout.name,
        "ranks": verdict.case.layout.ranks,
        "factors": dict(verdict.case.row),
        "dtype": verdict.case.train.dtype,
        "holds": verdict.holds,
        "answers": {q: answer._asdict() for q, answer in verdict.answers.items()},
        "command": verdict.case.command,
    }
