"""Two data-parallel ranks: ZeRO-1 against DistributedDataParallel, ZeRO-3 against FSDP2
(``fully_shard`` of each layer and of the rest), both over gloo.  Forward, backward and AdamW
without clipping, one thread a rank.
"""

import argparse
import os

import numpy as np

from tparallel.config import Layout, TrainConfig
from tparallel.train import Trainer

from .alternate import alternate, row
from .pipeline import _free_port
from .sizes import SIZES

RANKS = 2
PEERS = {"torch-ddp": 1, "torch-fsdp2": 3}  # and the ZeRO stage that stands beside each


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", default="S,M", help="of tiny, S, M (default: S,M)")
    parser.add_argument("--rounds", type=int, default=12, help="timed steps of each (default: 12)")


def run(args: argparse.Namespace, comm) -> list[dict]:
    rows = []
    for size in args.sizes.split(","):
        model, sequences = SIZES[size]
        train = TrainConfig(global_batch=sequences * RANKS, clip=0.0)
        batch = np.random.default_rng(0).integers(0, model.V, (2, train.global_batch, model.T))
        trainers = {
            zero: Trainer(model, train, Layout(dp=RANKS, zero=zero), comm)
            for zero in PEERS.values()
        }
        steps = {zero: ours(trainer, *batch) for zero, trainer in trainers.items()}
        steps |= {peer: theirs(peer, model, train, batch, comm) for peer in PEERS}
        seconds = alternate(steps, comm, args.rounds, warm_up=3)
        for peer, zero in PEERS.items():
            trainers[zero].close()
            pair = seconds[zero], seconds[peer]
            rows.append(row(f"zero {zero}", size, peer, *pair, tokens=batch[0].size))
    return rows


def ours(trainer: Trainer, tokens, targets):
    return lambda: trainer.step(0, tokens, targets)


def theirs(peer: str, model, train: TrainConfig, batch, comm):
    """The peer's step on this rank's rows."""
    import torch
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from .torch_gpt import layers, mean_loss

    torch.set_num_threads(1)
    torch.manual_seed(0)
    if not distributed.is_initialized():
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ["MASTER_PORT"] = str(comm.bcast(_free_port() if comm.rank == 0 else None))
        distributed.init_process_group("gloo", rank=comm.rank, world_size=comm.size)
    module = torch.nn.Sequential(*layers(model))
    if peer == "torch-ddp":
        module = torch.nn.parallel.DistributedDataParallel(module)
    else:
        mesh = init_device_mesh("cpu", (comm.size,))
        for part in (*module, module):
            fully_shard(part, mesh=mesh)
    optimizer = torch.optim.AdamW(module.parameters(), lr=train.lr, fused=True)
    tokens, targets = (torch.from_numpy(half).chunk(comm.size)[comm.rank] for half in batch)

    def step():
        optimizer.zero_grad()
        mean_loss(module(tokens), targets).backward()
        optimizer.step()

    return step
