"""One process, one thread: prefill and decode of ours (fast kernels) against PyTorch eager with a
cache of keys and values, float32, greedy.

Every program is a process of its own; they generate in turn, each round the same prompts.
"""

import argparse
import json
import sys
import time

import numpy as np

from tparallel.config import Layout, ModelConfig, TrainConfig

from .alternate import row
from .single import Program
from .sizes import SIZES

RANKS = 1
OURS, PEER = "generate", "torch-eager"
PROMPT, NEW = 128, 64  # tokens
WARM_UP = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", default="M,L", help="of S, M, L (default: M,L)")
    parser.add_argument("--rows", default="1,8", help="prompts at once (default: 1,8)")
    parser.add_argument("--rounds", type=int, default=6, help="timed rounds (default: 6)")
    parser.add_argument("--worker", nargs=2, metavar=("PROGRAM", "SIZE"), help=argparse.SUPPRESS)


def run(args: argparse.Namespace, comm) -> list[dict]:
    if args.worker:
        work(*args.worker, int(args.rows))
        return []
    rows = []
    for size in args.sizes.split(","):
        for count in args.rows.split(","):
            programs = {n: Program(n, size, "generate", "--rows", count) for n in (OURS, PEER)}
            found: dict[str, list] = {name: [] for name in programs}
            for _ in range(WARM_UP + args.rounds):
                for name, program in programs.items():
                    found[name].append(json.loads(program.ask("step")))
            for program in programs.values():
                program.end()
            for part, tokens in enumerate((PROMPT, NEW - 1)):
                seconds = ([s[part] for s in found[n][WARM_UP:]] for n in (OURS, PEER))
                what = f"{('prefill', 'decode')[part]}, {count} row" + "s" * (count != "1")
                rows.append(row(what, size, PEER, *seconds, tokens=int(count) * tokens))
    return rows


def work(name: str, size: str, rows: int) -> None:
    """The process behind ``Program``: (prefill, decode) in seconds, each time it is asked."""
    model, _ = SIZES[size]
    prompts = np.random.default_rng(0).integers(0, model.V, (rows, PROMPT))
    step = (ours if name == OURS else theirs)(model, prompts)
    print("ready", flush=True)
    for word in sys.stdin:
        print(json.dumps({} if word.strip() == "end" else step()), flush=True)


def ours(model: ModelConfig, prompts: np.ndarray):
    from mpi4py import MPI

    from tparallel.generate import Generator
    from tparallel.train import Trainer

    train = TrainConfig(global_batch=len(prompts))
    generator = Generator(Trainer(model, train, Layout(), MPI.COMM_SELF, learns=False))
    return lambda: generator.run(prompts.tolist(), NEW).seconds


def theirs(model: ModelConfig, prompts: np.ndarray):
    import torch

    from .torch_generate import Generator

    generator, ids = Generator(model), torch.from_numpy(prompts)

    def step() -> tuple[float, float]:
        start = time.perf_counter()
        new = generator.prefill(ids, PROMPT + NEW - 1)
        filled = time.perf_counter()
        for _ in range(NEW - 1):
            new.tolist()  # a person reads every token
            new = generator.decode(new)
        new.tolist()
        return filled - start, time.perf_counter() - filled

    return step
