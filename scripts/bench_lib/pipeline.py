"""Two stages on two ranks, eight micro-batches: 1F1B and the zero-bubble schedules against
``torch.distributed.pipelining``'s 1F1B over gloo.  Forward, backward and AdamW
without clipping, one thread a rank.
"""

import argparse

from tparallel.config import Layout, TrainConfig
from tparallel.pipeline_parallel.stage import cut_layers
from tparallel.train import Trainer

from . import alternate, gloo
from .sizes import SIZES

RANKS, M = 2, 8
PEER = "torch-pipelining-1f1b"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    alternate.add_arguments(parser, "S,M", 12)
    parser.add_argument(
        "--schedules", default="1f1b,zb-h1", help="ours, any of them (default: 1f1b,zb-h1)"
    )


def run(args: argparse.Namespace, comm) -> list[dict]:
    rows = []
    for size in args.sizes.split(","):
        model, sequences = SIZES[size]
        train = TrainConfig(global_batch=sequences * M, clip=0.0)
        batch = alternate.batch(model, train.global_batch)
        trainers = {
            name: Trainer(model, train, Layout(pp=RANKS, schedule=name, microbatches=M), comm)
            for name in args.schedules.split(",")
        }
        steps = {name: alternate.step_of(trainer, *batch) for name, trainer in trainers.items()}
        steps[PEER] = theirs(model, train, *batch, comm)
        seconds = alternate.alternate(steps, comm, args.rounds, warm_up=2)
        for name, trainer in trainers.items():
            trainer.close()
            pair, tokens = (seconds[name], seconds[PEER]), batch[0].size
            rows.append(alternate.row(f"pipeline {name}", size, PEER, *pair, tokens=tokens))
    return rows


def theirs(model, train: TrainConfig, tokens, targets, comm):
    """The peer's step on this rank: its stage, its schedule, its optimizer."""
    import torch
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B

    from .torch_gpt import layers, mean_loss

    gloo.join(comm)
    counts = [len(part) for part in cut_layers(model, RANKS)]
    start = sum(counts[: comm.rank])
    module = torch.nn.Sequential(*layers(model)[start : start + counts[comm.rank]])
    stage = PipelineStage(module, comm.rank, RANKS, torch.device("cpu"))
    schedule = Schedule1F1B(stage, n_microbatches=M, loss_fn=mean_loss)
    optimizer = gloo.optimizer_of(module, train.lr)
    x, y = torch.from_numpy(tokens), torch.from_numpy(targets)

    def step():
        optimizer.zero_grad()
        if comm.rank == 0:
            schedule.step(x)
        else:
            schedule.step(target=y, losses=[])
        optimizer.step()

    return step
