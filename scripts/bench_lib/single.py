"""One process, one thread: a training step of ours, in several versions, against PyTorch eager and
compiled.  Forward, backward, clipping and AdamW, float32.

Every program is a process of its own, so that each has its own kernels, BLAS and peak memory; they
take their steps in turn.
"""

import argparse
from pathlib import Path
from statistics import median

from tparallel.config import Layout, ModelConfig, TrainConfig

from . import alternate
from .peak import flops, gemm_peak, time_in_products
from .program import VERSIONS, Program, chosen, serve, versions
from .sizes import SIZES

RANKS = 1
PEERS = ("torch-eager", "torch-compiled")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    alternate.add_arguments(parser, "S,M,L", 12)
    parser.add_argument("--peers", default=",".join(PEERS), help="(default: %(default)s)")
    parser.add_argument("--worker", nargs=2, metavar=("PROGRAM", "SIZE"), help=argparse.SUPPRESS)


def run(args: argparse.Namespace, comm) -> list[dict]:
    if args.worker:
        work(*args.worker)
        return []
    rows, peak = [], gemm_peak()
    print(f"matrix products reach {peak:.0f} GFLOP/s here (float32, 1024 x 1024, one thread)")
    for size in args.sizes.split(","):
        model, sequences = SIZES[size]
        programs = {n: Program(n, size, "single") for n in (*versions(), *args.peers.split(","))}
        turns = {name: program.step for name, program in programs.items()}
        seconds = alternate.alternate(turns, comm, args.rounds)
        ended = {name: program.end() for name, program in programs.items()}
        explain(size, median(seconds[versions()[0]]), ended, peak)
        tokens = sequences * model.T
        for peer in args.peers.split(","):
            for name in versions():
                pair = seconds[name], seconds[peer]
                timed = alternate.row("single", size, peer, *pair, tokens=tokens)
                rows.append(timed | computed_with(ended[name]))
        rows += memory(size, ended)
    return rows


def computed_with(ended: dict) -> dict:
    return {key: ended[key] for key in ("kernels", "products")}


def explain(size: str, seconds: float, ended: dict, peak: float) -> None:
    """Where a step's time goes."""
    model, sequences = SIZES[size]
    rate, of = flops(model, sequences) / seconds / 1e9, ended[versions()[0]]["shares"]
    print(
        f"{size}: a step of {1e3 * seconds:.0f} ms is {rate:.0f} GFLOP/s, {rate / peak:.0%} of the "
        f"peak; {of['products']:.0%} of it in the layers' products, {of['heads']:.0%} in attention"
    )


def memory(size: str, ended: dict) -> list[dict]:
    """Resident memory at its highest, less what the process had before its first step."""
    peer, rows = "torch-eager", []
    for name in versions() if peer in ended else ():
        found, theirs = ended[name]["peak"] / 2**20, ended[peer]["peak"] / 2**20
        fields = {"bench": "single peak memory", "size": size, "peer": peer, "unit": "MiB"}
        figures = {"ours": found, "theirs": theirs, "ratio": found / theirs}
        rows.append(fields | figures | computed_with(ended[name]))
    return rows


def work(name: str, size: str) -> None:
    """The process behind ``Program``."""
    model, sequences = SIZES[size]
    train = TrainConfig(global_batch=sequences)
    batch = alternate.batch(model, sequences)
    before = resident()
    step = (ours if name in VERSIONS else theirs)(name, model, train, batch)

    def end() -> dict:
        found = {"peak": resident(highest=True) - before}
        return found | (chosen() | {"shares": time_in_products(step)} if name in VERSIONS else {})

    serve(step, end)


def resident(highest: bool = False) -> int:
    """Bytes of memory that this process has, or has had at most."""
    key = "VmHWM" if highest else "VmRSS"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def ours(name: str, model: ModelConfig, train: TrainConfig, batch):
    from mpi4py import MPI

    from tparallel.train import Trainer

    trainer = Trainer(model, train, Layout(), MPI.COMM_SELF)
    return alternate.step_of(trainer, *batch)


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
