"""One process, one thread: a training step of ours (fast kernels, with MKL's products where it is
installed, and plain NumPy) against PyTorch
eager and compiled.  Forward, backward, clipping and AdamW, float32.

Every program is a process of its own, so that each has its own kernels, BLAS and peak memory; they
take their steps in turn.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import numpy as np

from tparallel import mkl
from tparallel.config import Layout, ModelConfig, TrainConfig

from .alternate import alternate, row
from .peak import flops, gemm_peak, time_in_products
from .sizes import SIZES

RANKS = 1
OURS = {  # and what chooses it
    "single": {"TPARALLEL_KERNELS": "fast", "TPARALLEL_PRODUCTS": "array"},
    "single mkl": {"TPARALLEL_KERNELS": "fast", "TPARALLEL_PRODUCTS": "mkl"},
    "single plain NumPy": {"TPARALLEL_KERNELS": "plain", "TPARALLEL_PRODUCTS": "array"},
}
PEERS = ("torch-eager", "torch-compiled")
WARM_UP = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", default="S,M,L", help="of tiny, S, M, L (default: S,M,L)")
    parser.add_argument("--rounds", type=int, default=12, help="timed steps of each (default: 12)")
    parser.add_argument("--peers", default=",".join(PEERS), help="(default: %(default)s)")
    parser.add_argument("--worker", nargs=2, metavar=("PROGRAM", "SIZE"), help=argparse.SUPPRESS)


def run(args: argparse.Namespace, comm) -> list[dict]:
    if args.worker:
        work(*args.worker)
        return []
    rows, peak = [], gemm_peak()
    ours = [name for name in OURS if name != "single mkl" or mkl.installed()]
    print(f"matrix products reach {peak:.0f} GFLOP/s here (float32, 1024 x 1024, one thread)")
    for size in args.sizes.split(","):
        model, sequences = SIZES[size]
        programs = {name: Program(name, size) for name in (*ours, *args.peers.split(","))}
        seconds = alternate({n: p.step for n, p in programs.items()}, comm, args.rounds, WARM_UP)
        ended = {name: program.end() for name, program in programs.items()}
        for peer in args.peers.split(","):
            for name in ours:
                pair = seconds[name], seconds[peer]
                rows.append(row(name, size, peer, *pair, tokens=sequences * model.T))
        explain(size, median(seconds["single"]), ended, peak)
        rows += memory(size, ended)
    return rows


def explain(size: str, seconds: float, ended: dict, peak: float) -> None:
    """Where a step's time goes."""
    model, sequences = SIZES[size]
    rate, of = flops(model, sequences) / seconds / 1e9, ended["single"]
    print(
        f"{size}: a step of {1e3 * seconds:.0f} ms is {rate:.0f} GFLOP/s, {rate / peak:.0%} of the "
        f"peak; {of['products']:.0%} of it in the layers' products, {of['heads']:.0%} in attention"
    )


def memory(size: str, ended: dict) -> list[dict]:
    """Resident memory at its highest, less what the process had before its first step."""
    ours, theirs = (ended[name]["peak"] / 2**20 for name in ("single", "torch-eager"))
    fields = {"bench": "single peak memory", "size": size, "peer": "torch-eager"}
    return [{**fields, "ours": ours, "theirs": theirs, "unit": "MiB", "ratio": ours / theirs}]


class Program:
    """A process that takes one step whenever it is told to."""

    def __init__(self, name: str, size: str, bench: str = "single", *more: str):
        line = [sys.executable, str(Path(__file__).parent), bench, "--worker", name, size, *more]
        pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(line, env=os.environ | OURS.get(name, {}), **pipe)
        self._answer()

    def step(self) -> None:
        self.ask("step")

    def end(self) -> dict:
        """What it found out about itself."""
        found = json.loads(self.ask("end"))
        self.process.communicate()
        return found

    def ask(self, word: str) -> str:
        print(word, file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(self.process.args)} ended with {self.process.wait()}")
        return line


def work(name: str, size: str) -> None:
    """The process behind ``Program``."""
    model, sequences = SIZES[size]
    train = TrainConfig(global_batch=sequences)
    batch = np.random.default_rng(0).integers(0, model.V, (2, sequences, model.T))
    before = resident()
    step = (ours_step if name in OURS else theirs)(name, model, train, batch)
    print("ready", flush=True)
    for word in sys.stdin:
        if word.strip() == "end":
            found = {"peak": resident(highest=True) - before}
            print(json.dumps(found | (time_in_products(step) if name in OURS else {})), flush=True)
        else:
            step()
            print("done", flush=True)


def resident(highest: bool = False) -> int:
    """Bytes of memory that this process has, or has had at most."""
    key = "VmHWM" if highest else "VmRSS"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def ours_step(name: str, model: ModelConfig, train: TrainConfig, batch):
    from mpi4py import MPI

    from tparallel.train import Trainer

    trainer = Trainer(model, train, Layout(), MPI.COMM_SELF)
    return lambda: trainer.step(0, *batch)


def theirs(name: str, model: ModelConfig, train: TrainConfig, batch):
    import torch

    from .torch_gpt import layers, mean_loss

    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = torch.nn.Sequential(*layers(model))
    run = torch.compile(module) if name == "torch-compiled" else module
    optimizer = torch.optim.AdamW(module.parameters(), lr=train.lr, fused=True)
    tokens, targets = map(torch.from_numpy, batch)

    def step():
        optimizer.zero_grad()
        mean_loss(run(tokens), targets).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), train.clip)
        optimizer.step()

    return step
