"""One program of the benchmark: on every line of input, one step; its seconds as the answer."""

import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

sys.path[0:1] = [str(Path(__file__).resolve().parent.parent)]


def ours(spec: dict) -> Callable[[], None]:
    """The training step of this package on one rank: bfloat16, with float32 master weights."""
    import numpy as np
    from mpi4py import MPI

    from tparallel.backend import synchronize
    from tparallel.config import Layout, ModelConfig, TrainConfig
    from tparallel.train import Trainer

    model, rows = ModelConfig(**spec["model"]), spec["rows"]
    trainer = Trainer(
        model, TrainConfig(global_batch=rows, dtype="bfloat16"), Layout(), MPI.COMM_SELF
    )
    batch = np.random.default_rng(0).integers(0, model.V, (2, rows, model.T))

    def step() -> None:
        trainer.step(0, *batch)
        synchronize()

    return step


def torchs(spec: dict, compiled: bool) -> Callable[[], None]:
    """The same in PyTorch: SDPA, autocast to bfloat16, fused AdamW, TF32 where it is float32."""
    import torch
    from bench_lib.torch_gpt import layers, mean_loss

    from tparallel.config import ModelConfig

    torch.set_float32_matmul_precision("high")
    model, rows = ModelConfig(**spec["model"]), spec["rows"]
    parts = layers(model)
    if model.tied:
        parts[-1][-1].weight = parts[0].tokens.weight
    torch.set_default_device("cuda")
    net = torch.nn.Sequential(*parts).cuda()
    run = torch.compile(net) if compiled else net
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)
    tokens, targets = torch.randint(0, model.V, (2, rows, model.T))

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = mean_loss(run(tokens), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()

    return step


def peak(spec: dict) -> Callable[[], float]:
    """TFLOP/s of a product of two n × n matrices in bfloat16."""
    import ml_dtypes

    from tparallel.backend import synchronize, xp

    n, rounds = spec["n"], 20
    a = xp.ones((n, n), xp.float32).astype(ml_dtypes.bfloat16)

    def measure() -> float:
        for timed in (False, True):
            start = time.perf_counter()
            for _ in range(rounds if timed else 3):
                a @ a
            synchronize()
        return 2 * n**3 * rounds / (time.perf_counter() - start) / 1e12

    return measure


PROGRAMS = {
    "tparallel": ours,
    "tparallel, bfloat16 products": ours,  # by its environment
    "torch eager": lambda spec: torchs(spec, compiled=False),
    "torch compiled": lambda spec: torchs(spec, compiled=True),
    "peak": peak,
}


def main() -> None:
    program, spec = sys.argv[1], json.loads(sys.argv[2])
    try:
        step = PROGRAMS[program](spec)
        for _ in sys.stdin:
            start = time.perf_counter()
            result = step()
            print(result or time.perf_counter() - start, flush=True)
    except Exception as e:
        traceback.print_exc()
        print(f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}", flush=True)


if __name__ == "__main__":
    main()
