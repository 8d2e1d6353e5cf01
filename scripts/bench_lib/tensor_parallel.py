"""tp = 2 on two cores against Megatron's tensor parallelism as one writes it by hand in PyTorch,
over gloo.  Forward, backward and AdamW without clipping, float32, one thread a rank.

The peer cuts the blocks alone; its embedding, norms, head and loss are whole on both ranks, which
for a vocabulary of 256 costs little time and saves it three sums of ours.
"""

import argparse
import os
import socket

import numpy as np

from tparallel.config import Layout, ModelConfig, TrainConfig
from tparallel.train import Trainer

from .alternate import alternate, row
from .sizes import SIZES

RANKS = 2
PEER = "torch-gloo-tp"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", default="S,M", help="of tiny, S, M (default: S,M)")
    parser.add_argument("--rounds", type=int, default=12, help="timed steps of each (default: 12)")
    parser.add_argument(
        "--sp", action="store_true", help="also ours with sequence parallelism, and without overlap"
    )


def run(args: argparse.Namespace, comm) -> list[dict]:
    ways = {"tensor-parallel": Layout(tp=2)}
    if args.sp:
        ways["tensor-parallel sp"] = Layout(tp=2, sp="keep")
        ways["tensor-parallel overlap=0"] = Layout(tp=2, overlap=False)
    rows = []
    for size in args.sizes.split(","):
        model, sequences = SIZES[size]
        train = TrainConfig(global_batch=sequences, clip=0.0)
        tokens, targets = np.random.default_rng(0).integers(0, model.V, (2, sequences, model.T))
        trainers = {name: Trainer(model, train, way, comm) for name, way in ways.items()}
        steps = {name: ours(trainer, tokens, targets) for name, trainer in trainers.items()}
        steps[PEER] = theirs(model, train, tokens, targets, comm)
        seconds = alternate(steps, comm, args.rounds, warm_up=3)
        for name, trainer in trainers.items():
            trainer.close()
            rows.append(row(name, size, PEER, seconds[name], seconds[PEER], tokens=tokens.size))
    return rows


def ours(trainer: Trainer, tokens, targets):
    return lambda: trainer.step(0, tokens, targets)


def theirs(model: ModelConfig, train: TrainConfig, tokens, targets, comm):
    """The peer's step on this rank."""
    import torch
    from torch import distributed

    from .torch_gpt import mean_loss
    from .torch_tensor_parallel import layers

    torch.set_num_threads(1)
    torch.manual_seed(0)
    if not distributed.is_initialized():
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ["MASTER_PORT"] = str(comm.bcast(_free_port() if comm.rank == 0 else None))
        distributed.init_process_group("gloo", rank=comm.rank, world_size=comm.size)
    module = torch.nn.Sequential(*layers(model, comm.size))
    optimizer = torch.optim.AdamW(module.parameters(), lr=train.lr, fused=True)
    x, y = torch.from_numpy(tokens), torch.from_numpy(targets)

    def step():
        optimizer.zero_grad()
        mean_loss(module(x), y).backward()
        optimizer.step()

    return step


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
