"""ZeRO against PyTorch's data parallelism: tokens per second on two ranks.

    mpirun -n 2 .venv/bin/python -m mpi4py scripts/bench_zero.py                 sizes S and M
    mpirun -n 2 .venv/bin/python -m mpi4py scripts/bench_zero.py --sizes S --steps 30 --json z.json

ZeRO-1 stands beside DistributedDataParallel, ZeRO-3 beside FSDP2 (``fully_shard`` of each block
and of the rest), both over gloo.  The same model, batch, AdamW, float32, one thread per rank; no
clipping.  The four take turns, step by step, in one job; a ratio is the median of the ratios of
neighbouring steps.  Needs the extra ``oracle``.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from statistics import median

from tparallel import launch

launch.limit_threads(os.environ)

import numpy as np
import torch
import torch.distributed as dist
from mpi4py import MPI
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

from tparallel.config import Layout, ModelConfig, TrainConfig
from tparallel.tell import once
from tparallel.train import Trainer

SIZES = {  # model, sequences per rank
    "S": (ModelConfig(L=4, D=256, H=8, T=128, V=256), 8),
    "M": (ModelConfig(L=6, D=512, H=8, T=256, V=256), 4),
}
PAIRS = {"torch-ddp": 1, "torch-fsdp2": 3}  # peer -> the ZeRO stage that stands beside it


class Block(nn.Module):
    def __init__(self, c: ModelConfig):
        super().__init__()
        self.heads = c.H
        self.norm1, self.norm2 = nn.LayerNorm(c.D), nn.LayerNorm(c.D)
        self.qkv, self.out = nn.Linear(c.D, 3 * c.D), nn.Linear(c.D, c.D)
        self.up, self.down = nn.Linear(c.D, c.F), nn.Linear(c.F, c.D)

    def forward(self, x):
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(z.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Transformer(nn.Module):
    def __init__(self, c: ModelConfig):
        super().__init__()
        self.tok, self.pos = nn.Embedding(c.V, c.D), nn.Embedding(c.T, c.D)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.L))
        self.norm, self.head = nn.LayerNorm(c.D), nn.Linear(c.D, c.V, bias=False)

    def forward(self, tokens, targets):
        x = self.tok(tokens) + self.pos.weight
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), targets.flatten())


def torch_step(peer: str, c: ModelConfig, tokens, targets):
    """A function that trains one step on this rank's rows."""
    torch.manual_seed(0)
    model = Transformer(c)
    if peer == "torch-ddp":
        model = nn.parallel.DistributedDataParallel(model)
    else:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), fused=True)
    tokens, targets = torch.from_numpy(tokens), torch.from_numpy(targets)

    def step() -> float:
        loss = model(tokens, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def our_step(zero: int, c: ModelConfig, tokens, targets, comm):
    train = TrainConfig(steps=10**6, global_batch=len(tokens), lr=3e-4, clip=0.0)
    trainer = Trainer(c, train, Layout(dp=comm.size, zero=zero), comm)
    return lambda: trainer.step(1, tokens, targets)[0]


def bench(size: str, steps: int, comm) -> list[dict]:
    """Rows of one size, on rank 0."""
    c, rows = SIZES[size]
    n = comm.size
    tokens, targets = np.random.default_rng(0).integers(0, c.V, (2, n * rows, c.T))
    mine = slice(comm.rank * rows, (comm.rank + 1) * rows)
    ways = {f"zero {z}": our_step(z, c, tokens, targets, comm) for z in PAIRS.values()}
    ways |= {peer: torch_step(peer, c, tokens[mine], targets[mine]) for peer in PAIRS}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(2 + steps):
        for name, step in ways.items():
            comm.Barrier()
            start = time.perf_counter()
            step()
            comm.Barrier()
            if turn >= 2:  # the first two warm up
                seconds[name].append(time.perf_counter() - start)
    speed = {name: tokens.size / median(s) for name, s in seconds.items()}

    def ratio(zero: int, peer: str) -> float:
        pairs = zip(seconds[f"zero {zero}"], seconds[peer])
        return round(median(theirs / ours for ours, theirs in pairs), 3)

    return [
        {
            "bench": "zero",
            "size": size,
            "peer": peer,
            "ours": round(speed[f"zero {zero}"], 1),
            "theirs": round(speed[peer], 1),
            "unit": "tokens/s",
            "ratio": ratio(zero, peer),
        }
        for peer, zero in PAIRS.items()
    ]


def machine() -> str:
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    return (
        f"{platform.machine()}, {cores} cores, load {load:.1f}; "
        f"Python {platform.python_version()}, NumPy {np.__version__}, "
        f"PyTorch {torch.__version__}, {MPI.get_vendor()[0]}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each (default: 20)")
    parser.add_argument("--json", metavar="FILE", help="write the rows there too")
    args = parser.parse_args()
    comm = MPI.COMM_WORLD
    torch.set_num_threads(1)
    folder = comm.bcast(tempfile.mkdtemp() if comm.rank == 0 else None)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=comm.rank, world_size=comm.size)
    found = []
    once(comm, machine())
    for size in args.sizes:
        found += bench(size, args.steps, comm)
        for row in found[-len(PAIRS) :]:
            ours, theirs = f"{row['ours']:9,.0f}", f"{row['theirs']:9,.0f}"
            once(
                comm,
                f"{size}  ZeRO-{PAIRS[row['peer']]} {ours} tokens/s   {row['peer']:11} {theirs}"
                f"   ratio {row['ratio']:.2f}",
            )
    if args.json and comm.rank == 0:
        with open(args.json, "w") as file:
            json.dump({"machine": machine(), "rows": found}, file, indent=1)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
