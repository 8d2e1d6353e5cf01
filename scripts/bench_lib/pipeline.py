"""Two stages on two ranks, eight micro-batches: 1F1B and the zero-bubble schedules against
``torch.distributed.pipelining``'s 1F1B over gloo.  Forward, backward and AdamW
without clipping, one thread a rank.
"""

import argparse
import os

import numpy as np

from tparallel.config import Layout, TrainConfig
from tparallel.pipeline_parallel.stage import cut_layers
from tparallel.train import Trainer

from .alternate import alternate, row
from .sizes import SIZES

RANKS, M = 2, 8
PEER = "torch-pipelining-1f1b"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", default="S,M", help="of tiny, S, M (default: S,M)")
    parser.add_argument("--rounds", type=int, default=12, help="timed steps of each (default: 12)")
    parser.add_argument(
        "--schedules", default="1f1b,zb-h1", help="ours, any of them (default: 1f1b,zb-h1)"
    )


def run(args: argparse.Namespace, comm) -> list[dict]:
    rows = []
    for size in args.sizes.split(","):
        model, sequences = SIZES[size]
        train = TrainConfig(global_batch=sequences * M, clip=0.0)
        tokens, targets = np.random.default_rng(0).integers(
            0, model.V, (2, train.global_batch, model.T)
        )
        trainers = {
            name: Trainer(model, train, Layout(pp=RANKS, schedule=name, microbatches=M), comm)
            for name in args.schedules.split(",")
        }
        steps = {name: ours(trainer, tokens, targets) for name, trainer in trainers.items()}
        steps[PEER] = theirs(model, train, tokens, targets, comm)
        seconds = alternate(steps, comm, args.rounds, warm_up=3)
        for name, trainer in trainers.items():
            trainer.close()
            pair = seconds[name], seconds[PEER]
            rows.append(row(f"pipeline {name}", size, PEER, *pair, tokens=tokens.size))
    return rows


def ours(trainer: Trainer, tokens, targets):
    return lambda: trainer.step(0, tokens, targets)


def theirs(model, train: TrainConfig, tokens, targets, comm):
    """The peer's step on this rank: its stage, its schedule, its optimizer."""
    import torch
    from torch import distributed
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B

    from .torch_gpt import layers, mean_loss

    torch.set_num_threads(1)
    torch.manual_seed(0)
    if not distributed.is_initialized():
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ["MASTER_PORT"] = str(comm.bcast(_free_port() if comm.rank == 0 else None))
        distributed.init_process_group("gloo", rank=comm.rank, world_size=comm.size)
    counts = [len(part) for part in cut_layers(model, RANKS)]
    start = sum(counts[: comm.rank])
    module = torch.nn.Sequential(*layers(model)[start : start + counts[comm.rank]])
    stage = PipelineStage(module, comm.rank, RANKS, torch.device("cpu"))
    schedule = Schedule1F1B(stage, n_microbatches=M, loss_fn=mean_loss)
    optimizer = torch.optim.AdamW(module.parameters(), lr=train.lr, fused=True)
    x, y = torch.from_numpy(tokens), torch.from_numpy(targets)

    def step():
        optimizer.zero_grad()
        if comm.rank == 0:
            schedule.step(x)
        else:
            schedule.step(target=y, losses=[])
        optimizer.step()

    return step


def _free_port() -> int:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
