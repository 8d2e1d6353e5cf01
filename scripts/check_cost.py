#!/usr/bin/env python3
"""What --check costs: seconds per step with it and without it, in turns, on the same ranks.

mpirun -n 2 .venv/bin/python -m mpi4py scripts/check_cost.py
"""

import os
import time
from statistics import median

from tparallel import data, launch

launch.limit_threads(os.environ)

from mpi4py import MPI  # noqa: E402

from tparallel.config import Layout, ModelConfig, TrainConfig  # noqa: E402
from tparallel.tell import once  # noqa: E402
from tparallel.train import Trainer  # noqa: E402
from tparallel.verify import replicas  # noqa: E402

STEPS = 8


def main(comm) -> None:
    model, train, n = ModelConfig(), TrainConfig(global_batch=8), comm.size
    rows = data.load().batch(0, train.global_batch, model.T, seed=0)
    for layout in (Layout(tp=n), Layout(pp=n, microbatches=4), Layout(dp=n, zero=3)):
        seconds: dict[str, list[float]] = {"0": [], "1": []}
        trainers = {}
        for check in seconds:
            os.environ["TPARALLEL_CHECK"] = check
            trainers[check] = Trainer(model, train, layout, comm)
        for step in range(STEPS):
            for check, trainer in trainers.items():
                comm.Barrier()
                start = time.perf_counter()
                trainer.step(step, *rows)
                comm.Barrier()
                seconds[check].append(time.perf_counter() - start)
        start = time.perf_counter()
        replicas.check(trainers["0"], 0, *rows)
        comparing = time.perf_counter() - start
        without, with_ = (median(times[1:]) for times in seconds.values())
        once(
            comm,
            f"{layout.name:20} {without * 1e3:7.1f} ms, with --check {with_ * 1e3:7.1f} ms "
            f"({with_ / without - 1:+.0%}); one --check-replicas {comparing * 1e3:.1f} ms",
        )
        for trainer in trainers.values():
            trainer.close()


if __name__ == "__main__":
    main(MPI.COMM_WORLD)
