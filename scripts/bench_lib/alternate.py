"""Time several programs in turn, in one run: machines drift, and only neighbours compare."""

import argparse
import time
from collections.abc import Callable
from statistics import median

import numpy as np

from tparallel.compare.asleep import meet
from tparallel.config import ModelConfig

NAP = 1e-3  # seconds between two looks of a rank that has nothing to do


def add_arguments(parser: argparse.ArgumentParser, sizes: str, rounds: int) -> None:
    parser.add_argument("--sizes", default=sizes, help="of tiny, S, M, L (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=rounds, help="timed steps of each (default: %(default)s)"
    )


def batch(model: ModelConfig, sequences: int) -> np.ndarray:
    """tokens, targets (sequences, T)"""
    return np.random.default_rng(0).integers(0, model.V, (2, sequences, model.T))


def step_of(trainer, tokens: np.ndarray, targets: np.ndarray) -> Callable[[], object]:
    return lambda: trainer.step(0, tokens, targets)


def idle() -> None:
    """The step of a rank that a program does not need."""


def alternate(steps: dict[str, Callable[[], object]], comm, rounds: int, warm_up: int = 3) -> dict:
    """{name: seconds of each round}, of the slowest rank.  Every round runs every program once."""
    warm_up = min(warm_up, rounds)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(warm_up + rounds):
        for name, step in steps.items():
            comm.Barrier()
            start = time.perf_counter()
            step()
            took = time.perf_counter() - start
            meet(comm, NAP)  # MPI's own waiting would take a core from the others
            seconds[name].append(max(comm.allgather(took)))
    return {name: times[warm_up:] for name, times in seconds.items()}


def row(bench: str, size: str, peer: str, ours: list, theirs: list, tokens: int, of: int = 0):
    """Medians in tokens/s, and the median of the rounds' ratios (which drift does not touch);
    ``of``: tokens of the peer's step, where it has others."""
    of = of or tokens
    return {
        "bench": bench,
        "size": size,
        "peer": peer,
        "ours": tokens / median(ours),
        "theirs": of / median(theirs),
        "unit": "tokens/s",
        "ratio": median(t * tokens / (o * of) for o, t in zip(ours, theirs)),
    }
