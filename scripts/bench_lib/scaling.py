"""From one rank to two by the same code: ZeRO-1 with twice the global batch, and tp = 2.

They take their steps in turn; while rank 0 runs alone, the other sleeps outside MPI.
"""

import argparse

from mpi4py import MPI

from tparallel.config import Layout, TrainConfig
from tparallel.train import Trainer

from . import alternate
from .sizes import SIZES

RANKS = 2
PEER = "one rank"
WAYS = {"scaling zero=1": Layout(dp=RANKS, zero=1), "scaling tp=2": Layout(tp=RANKS)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    alternate.add_arguments(parser, "M", 12)


def run(args: argparse.Namespace, comm) -> list[dict]:
    rows = []
    for size in args.sizes.split(","):
        model, sequences = SIZES[size]
        ways = {PEER: Layout(), **WAYS} if comm.rank == 0 else WAYS
        batches = {n: alternate.batch(model, sequences * way.dp) for n, way in ways.items()}
        trainers = {
            name: Trainer(
                model,
                TrainConfig(global_batch=len(batches[name][0])),
                way,
                MPI.COMM_SELF if name == PEER else comm,
            )
            for name, way in ways.items()
        }
        steps = {n: alternate.step_of(trainer, *batches[n]) for n, trainer in trainers.items()}
        steps = {PEER: steps.get(PEER, alternate.idle), **{name: steps[name] for name in WAYS}}
        seconds = alternate.alternate(steps, comm, args.rounds)
        for trainer in trainers.values():
            trainer.close()
        one = sequences * model.T
        for name, way in WAYS.items():
            pair = seconds[name], seconds[PEER]
            rows.append(alternate.row(name, size, PEER, *pair, tokens=one * way.dp, of=one))
    return rows
