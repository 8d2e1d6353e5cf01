"""Generation on two ranks, tp = 2 and pp = 2 with two micro-batches in flight, beside one rank."""

import argparse

import numpy as np
from mpi4py import MPI

from tparallel.compare.asleep import meet
from tparallel.config import Layout, TrainConfig
from tparallel.generate import Generator
from tparallel.train import Trainer

from . import alternate
from .generate import NEW, PROMPT
from .sizes import SIZES

RANKS = 2
PEER = "one rank"
WAYS = {"tp=2": Layout(tp=2), "pp=2": Layout(pp=2, microbatches=2)}
WARM_UP = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    alternate.add_arguments(parser, "M,L", 4)
    parser.add_argument("--rows", default="1,8", help="prompts at once (default: 1,8)")


def run(args: argparse.Namespace, comm) -> list[dict]:
    rows = []
    for size in args.sizes.split(","):
        for count in map(int, args.rows.split(",")):
            prompts = np.random.default_rng(0).integers(0, SIZES[size][0].V, (count, PROMPT))
            ways = {PEER: Layout(), **{n: w for n, w in WAYS.items() if count >= w.microbatches}}
            generators = {n: generator(size, count, way, comm) for n, way in ways.items()}
            found: dict[str, list] = {name: [] for name in ways}
            for _ in range(WARM_UP + args.rounds):
                for name, one in generators.items():
                    found[name].append(seconds(one, prompts.tolist(), comm))
            for name in (n for n in ways if n != PEER):
                for part, tokens in enumerate((PROMPT, NEW - 1)):
                    pair = ([s[part] for s in found[n][WARM_UP:]] for n in (name, PEER))
                    what = f"{name} {('prefill', 'decode')[part]}, {count} rows"
                    rows.append(alternate.row(what, size, PEER, *pair, tokens=count * tokens))
            for one in filter(None, generators.values()):
                one.trainer.close()
    return rows


def generator(size: str, count: int, layout: Layout, comm) -> Generator | None:
    """None on a rank that the layout does not need."""
    if comm.rank >= layout.ranks:
        return None
    comm = comm if layout.ranks == comm.size else MPI.COMM_SELF
    train = TrainConfig(global_batch=count)
    return Generator(Trainer(SIZES[size][0], train, layout, comm, learns=False))


def seconds(one: Generator | None, prompts: list[list[int]], comm) -> tuple[float, float]:
    """Prefill and decode of the slowest rank; a rank that has nothing to do sleeps meanwhile."""
    took = one.run(prompts, NEW).seconds if one else (0.0, 0.0)
    meet(comm)
    return tuple(max(times) for times in zip(*comm.allgather(took)))
