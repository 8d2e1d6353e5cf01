"""Optimizer state outside of the parameters' memory: the same bits, and a model that is larger
than the memory it is given."""

import json
import resource
import sys

import numpy as np
import pytest
from layout_cases import MODEL, TRAIN, batch
from mpitest import mpi, mpirun

from tparallel.config import Layout, ModelConfig, TrainConfig, replace
from tparallel.serial.parameters import count
from tparallel.train import Trainer
from tparallel.zero.offload import MappedFile

BIG = ModelConfig(L=8, D=256, H=4, T=8, V=64)
HALF = TrainConfig(steps=3, global_batch=4, dtype="float16", warmup=1)
LIMIT = 40 * 2**20  # bytes beyond what the interpreter and its libraries take


def mapped_privately() -> int:
    """Bytes of this process that RLIMIT_DATA counts."""
    line = next(s for s in open("/proc/self/status") if s.startswith("VmData"))  # noqa: SIM115
    return int(line.split()[1]) * 1024


def train_under_a_limit(offload: str) -> None:
    """Three steps on two ranks, half of the states on each; prints the losses."""
    from mpi4py import MPI

    square = np.ones((512, 512), np.float32)
    assert (square @ square)[0, 0] == 512  # BLAS takes its own memory now
    del square
    resource.setrlimit(resource.RLIMIT_DATA, (mapped_privately() + LIMIT,) * 2)
    layout = Layout(dp=2, zero=3, offload=offload == "yes")
    trainer = Trainer(BIG, HALF, layout, MPI.COMM_WORLD)
    rows = np.random.default_rng(0).integers(0, BIG.V, (2, HALF.global_batch, BIG.T))
    losses = [trainer.step(step, *rows)[0] for step in range(HALF.steps)]
    if MPI.COMM_WORLD.rank == 0:
        print("LOSSES", json.dumps(losses))
    trainer.close()


@mpi(2)
@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_offloaded_state_gives_the_same_bits_and_lies_in_a_file(comm, dtype):
    """Three steps with state in memory and in mapped files, under every stage."""
    for zero in (0, 1, 2, 3):
        ends = []
        for offload in (False, True):
            train = replace(TRAIN, dtype=dtype)
            trainer = Trainer(MODEL, train, Layout(dp=2, zero=zero, offload=offload), comm)
            for step in range(3):
                trainer.step(step, *batch(MODEL, train, step))
            ends.append((trainer.store.params, trainer.store.optimizer.state))
            trainer.close()
        for b in ends[0][0]:
            assert ends[0][0][b].tobytes() == ends[1][0][b].tobytes()
            for kind, held in ends[0][1].items():
                assert held[b].tobytes() == ends[1][1][kind][b].tobytes()


def test_a_mapped_file_is_not_counted_as_data():
    """256 MB of state, written to, beside some memory of the process itself."""
    before = mapped_privately()
    state = MappedFile().zeros(2**26, np.float32)
    state[:: 2**18] = 1
    assert state.nbytes == 2**28 and mapped_privately() - before < 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mappings on Linux")
def test_a_model_that_does_not_fit_is_trained_when_its_state_is_offloaded():
    """Half of 16 bytes per parameter is more than the limit; half of 4 is less."""
    assert 8 * count(BIG) > LIMIT > 4 * 2 * count(BIG) // 4
    jobs = {
        offload: mpirun(2, "-m", "mpi4py", __file__, offload, timeout=120)
        for offload in ("no", "yes")
    }
    assert jobs["no"].code != 0 and "MemoryError" in jobs["no"].out, jobs["no"].out
    assert jobs["yes"].code == 0, jobs["yes"].out
    said = next(s for s in jobs["yes"].out.splitlines() if s.startswith("LOSSES"))
    losses = json.loads(said.removeprefix("LOSSES"))
    assert len(losses) == 3 and losses[2] < losses[0]


if __name__ == "__main__":
    train_under_a_limit(sys.argv[1])
