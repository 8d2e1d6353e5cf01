"""Vocabulary parallel: the full logits never exist on a rank, by the allocator."""

import tracemalloc

import numpy as np
import pytest
from mpitest import mpi

from tparallel.config import Layout, ModelConfig, TrainConfig
from tparallel.train import Trainer

V = 32749  # a prime: the logits of a step are some 50 times larger than anything else
MODEL = ModelConfig(L=1, D=8, H=4, T=16, V=V, F=8, tied=True)
TRAIN = TrainConfig(global_batch=4, optimizer="sgd", clip=0)


def peak(comm, **fields) -> int:
    """The most bytes that Python and NumPy hold at once in a step, of this rank's arrays."""
    trainer = Trainer(MODEL, TRAIN, Layout(**fields), comm)
    rng = np.random.default_rng(0)
    rows = tuple(rng.integers(0, V, (4, 16)) for _ in range(2))
    trainer.step(0, *rows)
    tracemalloc.start()
    trainer.step(1, *rows)
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    trainer.close()
    return found


@mpi(1, 4, fresh=True)
@pytest.mark.parametrize("sp", ["", "regather"])
def test_a_ranks_peak_is_its_share_of_the_logits(comm, sp):
    """Serial holds two arrays of B T V at its peak; a rank of n holds two of B T V/n, and less
    than a single whole one, all messages and gradients included."""
    n = comm.size
    logits = 4 * 16 * V * 4  # bytes
    found = peak(comm, tp=n, sp=sp if n > 1 else "")
    assert found > 2 * logits / n
    assert found < 3.2 * logits / n + 3 * V * 8 * 4
    assert n == 1 or found < logits
