"""Two data-parallel ranks: ZeRO-1 against DistributedDataParallel, ZeRO-3 against FSDP2
(``fully_shard`` of each layer and of the rest), both over gloo.  Forward, backward and AdamW
without clipping, one thread a rank.
"""

import argparse

from tparallel.config import Layout, TrainConfig
from tparallel.train import Trainer

from . import alternate, gloo
from .sizes import SIZES

RANKS = 2
PEERS = {"torch-ddp": 1, "torch-fsdp2": 3}  # and the ZeRO stage that stands beside each


def add_arguments(parser: argparse.ArgumentParser) -> None:
    alternate.add_arguments(parser, "S,M", 12)


def run(args: argparse.Namespace, comm) -> list[dict]:
    rows = []
    for size in args.sizes.split(","):
        model, sequences = SIZES[size]
        train = TrainConfig(global_batch=sequences * RANKS, clip=0.0)
        batch = alternate.batch(model, train.global_batch)
        trainers = {
            zero: Trainer(model, train, Layout(dp=RANKS, zero=zero), comm)
            for zero in PEERS.values()
        }
        steps = {zero: alternate.step_of(trainer, *batch) for zero, trainer in trainers.items()}
        steps |= {peer: theirs(peer, model, train, batch, comm) for peer in PEERS}
        seconds = alternate.alternate(steps, comm, args.rounds)
        for peer, zero in PEERS.items():
            trainers[zero].close()
            pair, tokens = (seconds[zero], seconds[peer]), batch[0].size
            rows.append(alternate.row(f"zero {zero}", size, peer, *pair, tokens=tokens))
    return rows


def theirs(peer: str, model, train: TrainConfig, batch, comm):
    """The peer's step on this rank's rows."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from .torch_gpt import layers, mean_loss

    gloo.join(comm)
    module = torch.nn.Sequential(*layers(model))
    if peer == "torch-ddp":
        module = torch.nn.parallel.DistributedDataParallel(module)
    else:
        mesh = init_device_mesh("cpu", (comm.size,))
        for part in (*module, module):
            fully_shard(part, mesh=mesh)
    optimizer = gloo.optimizer_of(module, train.lr)
    tokens, targets = (torch.from_numpy(half).chunk(comm.size)[comm.rank] for half in batch)

    def step():
        optimizer.zero_grad()
        mean_loss(module(tokens), targets).backward()
        optimizer.step()

    return step
