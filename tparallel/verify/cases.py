"""What is verified: every legal layout up to n ranks, and the other factors pairwise.

``AXES`` are the fields of a layout whose every legal product is a case.  ``FACTORS`` are the
others: their values are dealt out so that any value of any factor meets every value of every
other, and of every axis, in at least one case (a pairwise covering set, greedy).

Source: Cohen, Dalal, Fredman, Patton 1997, section 4 (pairwise covering, one row at a time)
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from itertools import chain, combinations, islice, product
from math import prod
from typing import Any

from ..config import Layout, ModelConfig, TrainConfig, as_dict, check
from ..config.presets import LLAMA, QWEN2
from ..errors import TParallelError
from ..pipeline_parallel.schedules import SCHEDULES

AXES: dict[str, tuple] = {
    "tp": tuple(range(1, 9)),
    "pp": tuple(range(1, 9)),
    "dp": tuple(range(1, 9)),
    "zero": (0, 1, 2, 3),
    "sp": ("", "keep", "regather"),
    "shard_group": (0, 2),
    "secondary": (False, True),
    "chunks": (0, 3),
    "schedule": ("", *SCHEDULES),
}
LONGER = "llama3:factor=4,original=16"  # as many tokens as a few turns of the fastest angles
FACTORS: dict[str, dict[str, dict]] = {  # factor -> value -> the fields that it sets
    "architecture": {"gpt2": {}, "llama": LLAMA, "qwen2": QWEN2 | {"rope_scaling": LONGER}},
    "optimizer": {
        "sgd": {"optimizer": "sgd", "clip": 0.0},
        "adamw, clipped": {"optimizer": "adamw", "clip": 0.5},
    },
    "accumulation": {"1": {"microbatches": 1}, "4": {"microbatches": 4}},
    "tables": {"untied": {"tied": False}, "tied": {"tied": True}},
    "vocabulary": {"odd": {"V": 37}, "even": {"V": 32}},
    "recompute": {value: {"recompute": value} for value in ("none", "selective", "full")},
    "dropout": {"off": {"dropout": 0.0}, "on": {"dropout": 0.1}},
    "key/value heads": {"each its own": {"Hkv": 0}, "one for all": {"Hkv": 1}},
    "cut": {"even": {"cut": "even"}, "by cost": {"cut": "cost"}},
    "overlap": {"yes": {"overlap": True}, "no": {"overlap": False}},
    "buckets": {"a layer each": {"bucket_bytes": 0}, "joined": {"bucket_bytes": 60_000}},
    "sums": {"each micro-batch": {"reduce_each": "microbatch"}, "once": {"reduce_each": "step"}},
    "state": {"here": {"offload": False}, "offloaded": {"offload": True}},
}
SINGLE = {"dtype": "float32", "optimizer": "sgd", "clip": 0.0}  # the float32 cases
FIXED = {"dtype": "float64", "init": "random", "steps": 3, "warmup": 1, "lr": 0.01, "V": 37}
TRIED = 40  # layouts that are compared before one is chosen for a pair of values
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
            if (axes["pp"] > 1) == bool(axes["schedule"]) and _stands(axes) and case_of(axes):
                found.append(axes)
    return found


def _stands(axes: dict) -> bool:
    """Is this a layout at all, whatever the model?"""
    try:
        Layout(**axes)
    except TParallelError:
        return False
    return True


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
    """Rows made one by one, each value chosen for the most pairs that no row before it has."""

    def __init__(self, shapes: list[dict], extra: dict):
        self.extra = extra
        self.shapes = {tuple((a, str(v)) for a, v in axes.items()): axes for axes in shapes}
        self.uncovered: set = set()
        values = [(factor, value) for factor, choices in FACTORS.items() for value in choices]
        for row in self.shapes:
            self.uncovered.update(combinations(row, 2), product(row, values))
        self.uncovered.update(pair for pair in combinations(values, 2) if pair[0][0] != pair[1][0])

    def each_layout_then_the_rest(self) -> Iterator[Case]:
        for shape in self.shapes:
            yield from self._case(shape, {})
        yield from self.the_rest()

    def the_rest(self) -> Iterator[Case]:
        while self.uncovered:
            pair = min(self.uncovered)
            fixed = {name: value for name, value in pair if name in FACTORS}
            axes = {entry for entry in pair if entry[0] not in FACTORS}
            shapes = [shape for shape in self.shapes if axes <= set(shape)]
            shapes = shapes[:: 1 + len(shapes) // TRIED]
            shapes.sort(key=lambda shape: -self._gain(self._best(shape, fixed)))
            yield from islice(chain(*(self._case(shape, fixed) for shape in shapes)), 1)
            self.uncovered.discard(pair)  # where no legal case has it

    def _best(self, shape: Row, fixed: dict[str, str]) -> Row:
        """This layout with these values, the others chosen one by one."""
        row = [*shape]
        for factor, choices in FACTORS.items():
            values = [fixed[factor]] if factor in fixed else choices
            new = {(factor, v): self._new(row, (factor, v)) for v in values}
            row.append(max(new, key=new.__getitem__))
        return tuple(row)

    def _case(self, shape: Row, fixed: dict[str, str]) -> Iterator[Case]:
        """One case of this layout with these values; none if all are refused."""
        best = dict(self._best(shape, fixed)[len(shape) :])
        for chosen in self._near(best, fixed):
            fields_ = dict(self.shapes[shape])
            for factor, value in chosen.items():
                fields_ |= FACTORS[factor][value]
            if case := case_of(fields_ | self.extra):
                row = (*shape, *((factor, chosen[factor]) for factor in FACTORS))
                self.uncovered.difference_update(combinations(row, 2))
                yield replace(case, row=row)
                return

    def _near(self, chosen: dict, fixed: dict) -> Iterator[dict]:
        """These values, and, in case they are refused together, those with one changed."""
        free = [(f, v) for f in FACTORS if f not in fixed for v in FACTORS[f] if v != chosen[f]]
        yield chosen
        yield from (chosen | {factor: value} for factor, value in free)

    def _gain(self, row: Row) -> int:
        return len(self.uncovered.intersection(combinations(row, 2)))

    def _new(self, row: list, entry: tuple[str, str]) -> int:
        return sum((other, entry) in self.uncovered for other in row)
