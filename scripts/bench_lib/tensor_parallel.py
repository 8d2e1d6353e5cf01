"""tp = 2 on two cores against Megatron's tensor parallelism as one writes it by hand in PyTorch,
over gloo.  Forward, backward and AdamW without clipping, float32, one thread a rank.

The peer cuts the blocks alone; its embedding, norms, head and loss are whole on both ranks, which
for a vocabulary of 256 costs little time and saves it three sums of ours.
"""

import argparse

from tparallel.config import Layout, ModelConfig, TrainConfig
from tparallel.train import Trainer

from . import alternate, gloo
from .sizes import SIZES

RANKS = 2
PEER = "torch-gloo-tp"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    alternate.add_arguments(parser, "S,M", 12)
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
        batch = alternate.batch(model, sequences)
        trainers = {name: Trainer(model, train, way, comm) for name, way in ways.items()}
        steps = {name: alternate.step_of(trainer, *batch) for name, trainer in trainers.items()}
        steps[PEER] = theirs(model, train, *batch, comm)
        seconds = alternate.alternate(steps, comm, args.rounds)
        for name, trainer in trainers.items():
            trainer.close()
            pair = seconds[name], seconds[PEER]
            rows.append(alternate.row(name, size, PEER, *pair, tokens=batch[0].size))
    return rows


def theirs(model: ModelConfig, train: TrainConfig, tokens, targets, comm):
    """The peer's step on this rank."""
    import torch

    from .torch_gpt import mean_loss
    from .torch_tensor_parallel import layers

    gloo.join(comm)
    module = torch.nn.Sequential(*layers(model, comm.size))
    optimizer = gloo.optimizer_of(module, train.lr)
    x, y = torch.from_numpy(tokens), torch.from_numpy(targets)

    def step():
        optimizer.zero_grad()
        mean_loss(module(x), y).backward()
        optimizer.step()

    return step
