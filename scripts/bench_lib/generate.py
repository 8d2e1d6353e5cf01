"""One process, one thread: prefill and decode of ours against PyTorch eager with a cache of keys
and values, float32, greedy.

Every program is a process of its own; they generate in turn, each round the same prompts.
"""

import argparse
import time

import numpy as np

from tparallel.config import Layout, ModelConfig, TrainConfig

from . import alternate
from .program import VERSIONS, Program, chosen, serve, versions
from .sizes import SIZES

RANKS = 1
PEER = "torch-eager"
PROMPT, NEW = 128, 64  # tokens
WARM_UP = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    alternate.add_arguments(parser, "M,L", 6)
    parser.add_argument("--rows", default="1,8", help="prompts at once (default: 1,8)")
    parser.add_argument("--worker", nargs=2, metavar=("PROGRAM", "SIZE"), help=argparse.SUPPRESS)


def run(args: argparse.Namespace, comm) -> list[dict]:
    if args.worker:
        work(*args.worker, int(args.rows))
        return []
    rows = []
    for size in args.sizes.split(","):
        for count in map(int, args.rows.split(",")):
            rows += generated(size, count, args.rounds)
    return rows


def generated(size: str, count: int, rounds: int) -> list[dict]:
    ours = [name for name in versions() if name != "tuned"] or versions()
    programs = {n: Program(n, size, "generate", "--rows", str(count)) for n in (*ours, PEER)}
    seconds: dict[str, list] = {name: [] for name in programs}
    for _ in range(WARM_UP + rounds):
        for name, program in programs.items():
            seconds[name].append(program.ask("step")["seconds"])
    ended = {name: program.end() for name, program in programs.items()}
    rows = []
    for name in ours:
        for part, tokens in enumerate((PROMPT, NEW - 1)):
            pair = ([s[part] for s in seconds[n][WARM_UP:]] for n in (name, PEER))
            what = f"{('prefill', 'decode')[part]}, {count} row" + "s" * (count != 1)
            rows.append(alternate.row(what, size, PEER, *pair, tokens=count * tokens) | ended[name])
    return rows


def work(name: str, size: str, rows: int) -> None:
    """The process behind ``Program``: (prefill, decode) in seconds, each time it is asked."""
    model, _ = SIZES[size]
    prompts = np.random.default_rng(0).integers(0, model.V, (rows, PROMPT))
    step = (ours if name in VERSIONS else theirs)(model, prompts)
    serve(lambda: {"seconds": step()}, chosen)


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
