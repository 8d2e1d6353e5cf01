"""One program of the benchmark: on every line of input one step, its seconds as the answer; or, if
the line says ``parts``, what there is to tell of a step, as JSON.
"""

import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path[0:1] = [str(Path(__file__).resolve().parent.parent)]


class Program(NamedTuple):
    step: Callable[[], float | None]  # its own figure, or None: the seconds that it took
    parts: Callable[[], dict] = dict


def ours(spec: dict, activations: str = "bfloat16") -> Program:
    """The training step of this package on one rank: bfloat16, with float32 master weights."""
    import numpy as np
    from mpi4py import MPI

    from tparallel.backend import synchronize
    from tparallel.compare.memory import pool_peak
    from tparallel.config import Layout, ModelConfig, TrainConfig
    from tparallel.train import Trainer

    model, rows = ModelConfig(**spec["model"]), spec["rows"]
    train = TrainConfig(global_batch=rows, dtype="bfloat16", activations=activations)
    trainer = Trainer(model, train, Layout(), MPI.COMM_SELF)
    batch = np.random.default_rng(0).integers(0, model.V, (2, rows, model.T))

    def step() -> None:
        trainer.step(0, *batch)
        synchronize()

    def parts() -> dict:
        """Seconds of a step, and the most memory that is taken at once."""
        with pool_peak() as peak:
            clock = [time.perf_counter()]
            loss = trainer.forward_backward(*batch)
            synchronize()
            clock.append(time.perf_counter())
            _, norm = trainer.store.totals(loss)
            clock.append(time.perf_counter())
            trainer.store.update(0, norm)
            synchronize()
            clock.append(time.perf_counter())
        names = ("forward and backward", "norm", "update")
        took = {name: b - a for name, a, b in zip(names, clock, clock[1:])}
        return {**took, "gigabytes": peak[0] / 1e9}

    return Program(step, parts)


def torchs(spec: dict, compiled: bool) -> Program:
    """The same in PyTorch: SDPA, autocast to bfloat16, fused AdamW, TF32 where it is float32."""
    import torch
    from bench_lib.torch_gpt import layers, mean_loss

    from tparallel.config import ModelConfig

    torch.set_float32_matmul_precision("high")
    model, rows, device = ModelConfig(**spec["model"]), spec["rows"], spec["device"]
    torch.set_default_device(device)
    net = torch.nn.Sequential(*layers(model))
    run = torch.compile(net) if compiled else net
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)
    tokens, targets = torch.randint(0, model.V, (2, rows, model.T))

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            loss = mean_loss(run(tokens), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()

    def parts() -> dict:
        used = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None
        return {"torch": torch.__version__, "gigabytes": used}

    return Program(step, parts)


def peak(spec: dict) -> Program:
    """TFLOP/s of a product of two n × n matrices in bfloat16."""
    import ml_dtypes
    import numpy as np

    from tparallel.backend import synchronize, xp

    n, rounds = spec["n"], 20  # of numbers at random: products of equal ones take less power
    a, b = (
        xp.asarray(np.random.default_rng(seed).standard_normal((n, n), np.float32)).astype(
            ml_dtypes.bfloat16
        )
        for seed in (0, 1)
    )

    def measure() -> float:
        for timed in (False, True):
            start = time.perf_counter()
            for _ in range(rounds if timed else 3):
                a @ b
            synchronize()
        return 2 * n**3 * rounds / (time.perf_counter() - start) / 1e12

    return Program(measure)


PROGRAMS = {
    "tparallel": ours,
    "tparallel, blocks": ours,  # by its environment
    "tparallel, float32": lambda spec: ours(spec, activations=""),
    "torch eager": lambda spec: torchs(spec, compiled=False),
    "torch compiled": lambda spec: torchs(spec, compiled=True),
    "peak": peak,
}


def main() -> None:
    program, spec = sys.argv[1], json.loads(sys.argv[2])
    try:
        found = PROGRAMS[program](spec)
        for word in sys.stdin:
            start = time.perf_counter()
            if word.strip() == "parts":
                print(json.dumps(found.parts()), flush=True)
            else:
                print(found.step() or time.perf_counter() - start, flush=True)
    except Exception as e:
        traceback.print_exc()
        print(f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}", flush=True)


if __name__ == "__main__":
    main()
