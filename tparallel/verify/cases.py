"""What is verified: every legal layout up to n ranks, and the other factors pairwise.

``AXES`` are the fields of a layout whose every legal product is a case.  ``FACTORS`` are the
others: their values are dealt out so that any value of any factor meets every value of every
other, and of every axis, in at least one case (a pairwise covering set, greedy).

Source: Cohen, Dalal, Fredman, Patton 1997, section 4 (pairwise covering, one row at a time)
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from itertools import chain, combinations, product
from math import prod
from typing import Any

from ..config import Layout, ModelConfig, TrainConfig, as_dict, check
from ..errors import TParallelError
from ..pipeline_parallel.schedules import SCHEDULES

AXES: dict[str, tuple] = {
    "tp": tuple(range(1, 9)),
    "pp": tuple(range(1, 9)),
    "dp": tuple(range(1, 9)),
    "zero": (0, 1, 2, 3),
    "shard_group": (0, 2),
    "schedule": ("", *SCHEDULES),
}
FACTORS: dict[str, dict[str, dict]] = {  # factor -> value -> the fields that it sets
    "optimizer": {
        "sgd": {"optimizer": "sgd", "clip": 0.0},
        "adamw, clipped": {"optimizer": "adamw", "clip": 0.5},
    },
    "accumulation": {"1": {"microbatches": 1}, "4": {"microbatches": 4}},
    "tables": {"untied": {"tied": False}, "tied": {"tied": True}},
    "vocabulary": {"odd": {"V": 37}, "even": {"V": 32}},
    "overlap": {"yes": {"overlap": True}, "no": {"overlap": False}},
    "buckets": {"a layer each": {"bucket_bytes": 0}, "joined": {"bucket_bytes": 60_000}},
    "sums": {"each micro-batch": {"reduce_each": "microbatch"}, "once": {"reduce_each": "step"}},
    "state": {"here": {"offload": False}, "offloaded": {"offload": True}},
}
SINGLE = {"dtype": "float32", "optimizer": "sgd", "clip": 0.0}  # the float32 cases
FIXED = {"dtype": "float64", "init": "random", "steps": 3, "warmup": 1, "lr": 0.01, "V": 37}
Row = tuple[tuple[str, str], ...]  # one value of every axis and factor: ("tp", "2"), ...


@dataclass(frozen=True)
class Case:
    """One question: does this layout train this model as one process does?"""

    model: ModelConfig
    train: TrainConfig
    layout: Layout
    row: Row = field(default=(), compare=False)  # the values that it was made from

    @property
    def command(self) -> str:
        """The command that asks this question alone."""
        out = ["tparallel verify"]
        config: Any
        for config, default in zip((self.layout, self.model, self.train), _DEFAULTS):
            for name, value in as_dict(config).items():
                if value != getattr(default, name):
                    flag = "--" + name.replace("_", "-")
                    out.append(flag if value is True else f"{flag} {value}")
        return " ".join(out)


_DEFAULTS = (Layout(), ModelConfig(), TrainConfig())


def every_case(ranks: int, extra: dict | None = None) -> list[Case]:
    """Each layout of at most ``ranks`` ranks once, the factors dealt out pairwise over them, and
    then what is needed to complete the pairs.  ``extra`` is set in all of them."""
    return [*_Covering(layouts(ranks), extra or {}).each_layout_then_the_rest()]


def covering_cases(ranks: int, extra: dict | None = None) -> list[Case]:
    """Few cases in which every legal pair of values occurs: not every layout is among them."""
    return [*_Covering(layouts(ranks), extra or {}).the_rest()]


def layouts(ranks: int) -> list[dict]:
    """Every legal product of ``AXES`` on at most ``ranks`` ranks, small ones first."""
    sizes = product(*(AXES[axis] for axis in ("tp", "pp", "dp")))
    found = []
    for size in sorted((s for s in sizes if prod(s) <= ranks), key=prod):
        for rest in product(*(AXES[axis] for axis in AXES if axis not in ("tp", "pp", "dp"))):
            axes = dict(zip(AXES, (*size, *rest)))
            if (axes["pp"] > 1) == bool(axes["schedule"]) and case_of(axes):
                found.append(axes)
    return found


def case_of(settings: dict) -> Case | None:
    """The smallest model and batch that these fields allow; None if they are refused.

    A model that is too small for the layout is not a refusal: heads, tokens, blocks and rows grow
    with tp, pp and dp.  Some schedules want a multiple of pp micro-batches: they get it.
    """
    tp, pp, dp = (settings.get(axis, 1) for axis in ("tp", "pp", "dp"))
    H = 8 if 8 % tp == 0 else tp
    sizes = {"H": H, "D": 4 * H, "F": 6 * H, "T": 8 if 8 % tp == 0 else 2 * tp}
    wanted = settings.get("microbatches", 1)
    for M in dict.fromkeys((wanted, -(-wanted // pp) * pp, 2 * pp)):
        rows = 8 if 8 % (dp * M) == 0 else dp * M
        for L in filter(lambda L: pp <= L, (2, 4, 8, 16)):
            try:
                fields_ = {**sizes, **FIXED, **settings}
                return configs({**fields_, "L": L, "global_batch": rows, "microbatches": M})
            except TParallelError:
                continue
    return None


def configs(values: dict) -> Case:
    """Fields by name, each to the config that has it; checked as the trainer would."""

    def made(config: type) -> Any:
        return config(**{f.name: values[f.name] for f in fields(config) if f.name in values})

    case = Case(made(ModelConfig), made(TrainConfig), made(Layout))
    check(case.model, case.train, case.layout)
    return case


class _Covering:
    """Rows chosen one by one, each for the most pairs of values that no row before it has."""

    def __init__(self, shapes: list[dict], extra: dict):
        self.extra = extra
        combined = [tuple(zip(FACTORS, values)) for values in product(*FACTORS.values())]
        self.rows: dict[Row, tuple] = {}  # by layout: its possible rows
        for axes in shapes:
            start = tuple((axis, str(value)) for axis, value in axes.items())
            self.rows[start] = tuple((start + more, axes) for more in combined)
        everything = chain(*self.rows.values())
        self.uncovered = set(chain(*(combinations(row, 2) for row, _ in everything)))

    def each_layout_then_the_rest(self) -> Iterator[Case]:
        for turn, rows in enumerate(self.rows.values()):
            cut = turn % len(rows)  # where nothing is new, take turns
            yield from self._best(rows[cut:] + rows[:cut])
        yield from self.the_rest()

    def the_rest(self) -> Iterator[Case]:
        everything = [*chain(*self.rows.values())]
        while self.uncovered:
            pair = set(min(self.uncovered))
            yield from self._best([entry for entry in everything if pair <= set(entry[0])])
            self.uncovered.discard(tuple(sorted(pair, key=_order)))  # or no legal case has it

    def _best(self, rows: Iterable[tuple[Row, dict]]) -> Iterator[Case]:
        """The legal one of these rows that covers most; none if all are refused."""
        for row, axes in sorted(rows, key=lambda entry: -self._gain(entry[0])):
            chosen: dict = dict(axes)
            for factor, value in row[len(axes) :]:
                chosen |= FACTORS[factor][value]
            if case := case_of(chosen | self.extra):
                self.uncovered -= set(combinations(row, 2))
                yield replace(case, row=row)
                return

    def _gain(self, row: Row) -> int:
        return len(self.uncovered.intersection(combinations(row, 2)))


def _order(entry: tuple[str, str]) -> int:
    return [*AXES, *FACTORS].index(entry[0])
