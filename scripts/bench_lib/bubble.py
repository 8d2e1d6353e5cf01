"""The bubble of two stages on two ranks: measured on aligned clocks, against the simulator that is
fed with the time that every action of the step took, and every message.  It is right where they
differ by less than 15 % or 0.02, whichever is larger.
"""

import argparse
from itertools import product

import numpy as np

from tparallel.config import Layout, TrainConfig
from tparallel.pipeline_parallel import measured
from tparallel.pipeline_parallel.simulate import simulate
from tparallel.train import Trainer

from . import alternate
from .sizes import SIZES

RANKS = 2
SCHEDULES = ("gpipe", "1f1b", "interleaved", "zb-h1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    alternate.add_arguments(parser, "S", 20)
    parser.add_argument("--microbatches", default="2,4,8,16", help="(default: 2,4,8,16)")
    parser.add_argument("--schedules", default=",".join(SCHEDULES), help="(default: %(default)s)")


def run(args: argparse.Namespace, comm) -> list[dict]:
    cases = product(
        args.sizes.split(","), map(int, args.microbatches.split(",")), args.schedules.split(",")
    )
    rows = []
    for size, M, name in cases:
        model, sequences = SIZES[size]
        layout = Layout(pp=RANKS, schedule=name, microbatches=M)
        trainer = Trainer(model, TrainConfig(global_batch=sequences * M), layout, comm)
        steps = measured.steps(trainer, warm_up=3, count=args.rounds)
        trainer.close()
        if steps:
            rows.append(compared(name, size, M, steps))
    return rows


def compared(name: str, size: str, M: int, steps: list) -> dict:
    """Medians over the steps: ``ours`` is measured, ``theirs`` predicted."""
    fed = [simulate(t.schedule, measured.action_times(t), measured.delays([t])) for t in steps]
    got, predicted = (float(np.median([t.bubble for t in ts])) for ts in (steps, fed))
    return {
        "bench": f"bubble {name} M={M}",
        "size": size,
        "peer": "simulator",
        "ours": got,
        "theirs": predicted,
        "unit": "right" if right(got, predicted) else "off",
        "ratio": got / predicted,
    }


def right(got: float, predicted: float) -> bool:
    return abs(got - predicted) <= max(0.02, 0.15 * predicted)
