"""More ranks than cores: the step of 4 and of 8 ranks beside one rank's, the same batch for all.

Ranks that a layout does not need sleep outside MPI.  ``ratio`` is the speed: 1 is as fast as one
rank, and as many as there are cores is all that can be had.
"""

import argparse
from statistics import median

from mpi4py import MPI

from tparallel.config import Layout, TrainConfig
from tparallel.train import Trainer

from . import alternate
from .sizes import SIZES

RANKS = 8
PEER = "one rank"
WAYS = {
    "tp=4": Layout(tp=4),
    "pp=4 1f1b": Layout(pp=4, schedule="1f1b", microbatches=4),
    "dp=4 zero=1": Layout(dp=4, zero=1),
    "tp=2 dp=2 zero=3": Layout(tp=2, dp=2, zero=3),
    "tp=8": Layout(tp=8),
    "dp=8 zero=1": Layout(dp=8, zero=1),
    "tp=2 pp=2 dp=2": Layout(tp=2, pp=2, dp=2, microbatches=2),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    alternate.add_arguments(parser, "S", 8)


def run(args: argparse.Namespace, comm) -> list[dict]:
    rows = []
    for size in args.sizes.split(","):
        model, _ = SIZES[size]
        train, batch = TrainConfig(global_batch=RANKS), alternate.batch(model, RANKS)
        ways, trainers, steps = {PEER: Layout(), **WAYS}, [], {}
        for name, way in ways.items():
            part = comm.Split(0 if comm.rank < way.ranks else MPI.UNDEFINED, comm.rank)
            steps[name] = alternate.idle
            if part != MPI.COMM_NULL:
                trainers.append(Trainer(model, train, way, part))
                steps[name] = alternate.step_of(trainers[-1], *batch)
        seconds = alternate.alternate(steps, comm, args.rounds, warm_up=2)
        for trainer in trainers:
            trainer.close()
        rows += [row(name, size, seconds[name], seconds[PEER]) for name in WAYS]
    return rows


def row(name: str, size: str, ours: list, theirs: list) -> dict:
    return {
        "bench": f"crowded {name}",
        "size": size,
        "peer": PEER,
        "ours": 1e3 * median(ours),
        "theirs": 1e3 * median(theirs),
        "unit": "ms a step",
        "ratio": median(t / o for o, t in zip(ours, theirs)),
    }
