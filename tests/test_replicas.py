"""Copies that drift apart, and numbers that stop being numbers: found, named, in time."""

import numpy as np
import pytest
from mpitest import mpi, mpirun

from tparallel.config import Layout
from tparallel.errors import NotFiniteError, ReplicaError
from tparallel.train import Trainer
from tparallel.verify import replicas
from tparallel.verify.cases import case_of
from tparallel.verify.reference import batches


def _trainer(comm, **layout):
    case = case_of({**layout, "steps": 4})
    return Trainer(case.model, case.train, case.layout, comm), batches(case.model, case.train)


def _flip(flat, at, bit=3):
    """One bit of one float64, as memory would."""
    flat.view(np.uint64)[at] ^= np.uint64(1 << bit)


HELD = [  # layout, vectors to spoil, bucket, the rank that is spoilt, what is said of it
    ({"dp": 4}, "params", "block.1", 2, "parameter block.1.norm1.g: rank 2 against ranks 0, 1, 3"),
    ({"dp": 4, "zero": 2}, "params", "block.0", 3, "rank 3 against ranks 0, 1, 2"),
    ({"tp": 4}, "params", "block.1", 1, "parameter block.1.norm1.g: rank 1 against ranks 0, 2, 3"),
    ({"tp": 2, "pp": 2, "tied": True}, "params", "vocab", 3, "parameter vocab.w_tok: rank 1 ag"),
    ({"dp": 4}, "m", "block.1", 0, "m block.1.norm1.g: rank 0 against ranks 1, 2, 3"),
]


@mpi(4)
@pytest.mark.parametrize("case", range(len(HELD)))
def test_one_flipped_bit_on_one_rank_is_named_at_the_next_check(comm, case):
    """The lowest bits of one number of one copy: rank, tensor and step are said on every rank."""
    layout, kind, bucket, spoilt, said = HELD[case]
    trainer, rows = _trainer(comm, **layout)
    trainer.step(0, *rows[0])
    replicas.check(trainer, 0, *rows[0])
    if comm.rank == spoilt:
        held = trainer.store.params if kind == "params" else trainer.store.moments[0]
        _flip(held[bucket], 0)
    with pytest.raises(ReplicaError) as error:
        replicas.check(trainer, 0, *rows[0])
    assert said in str(error.value) and "after step 1" in str(error.value)
    assert len(set(comm.allgather(str(error.value)))) == 1
    trainer.close()


@mpi(2)
def test_another_batch_on_one_rank_is_named(comm):
    """The order of the data is a replica too."""
    trainer, rows = _trainer(comm, tp=2)
    with pytest.raises(ReplicaError, match="batch tokens: rank 0 against rank 1"):
        replicas.check(trainer, 0, *rows[comm.rank])
    trainer.close()


@mpi(4)
@pytest.mark.parametrize("layout", ["zero=3", "zero=1", "shard_group=2,zero=1"])
def test_what_is_sharded_is_not_a_replica(comm, layout):
    """No false alarm after three steps, whatever a ZeRO stage cuts."""
    chosen = Layout.parse(layout, dp=4)
    trainer, rows = _trainer(comm, dp=4, zero=chosen.zero, shard_group=chosen.shard_group)
    for step in range(3):
        trainer.step(step, *rows[step])
    replicas.check(trainer, 2, *rows[2])
    trainer.close()


@mpi(4)
@pytest.mark.parametrize("where", ["parameter", "forward"])
def test_a_nan_is_named_and_nothing_is_updated(comm, where):
    """Tensor, layer, rank and step, the same on every rank; parameters stay what they were."""
    trainer, rows = _trainer(comm, tp=2, pp=2, microbatches=2)
    trainer.step(0, *rows[0])
    if comm.rank == 3:  # the second stage, the second of its tp ranks
        if where == "parameter":
            trainer.store.params["block.1"][40] = np.nan
        else:
            f = trainer.executor.chunks[1].functions["block.1"]

            def forward(x, p, **more):
                y, cache = f.forward(x, p, **more)
                return y * np.inf, cache

            trainer.executor.chunks[1].functions["block.1"] = f._replace(forward=forward)
    before = {b: v.copy() for b, v in trainer.store.params.items()}
    with np.errstate(invalid="ignore"), pytest.raises(NotFiniteError) as error:
        trainer.step(1, *rows[1])
    said = str(error.value)
    assert said.startswith("step 2: loss ")
    what = "parameter norm1.b" if where == "parameter" else "output"
    assert said.endswith(f"{what} of block.1, on rank 3"), said
    assert len(set(comm.allgather(said))) == 1
    for bucket, flat in trainer.store.params.items():
        assert np.array_equal(flat, before[bucket], equal_nan=True)
    trainer.close()


PLAIN = ("--L", "2", "--D", "16", "--H", "2", "--T", "8", "--steps", "6", "--validate-every", "0")


@pytest.mark.mpi
def test_training_with_a_bug_that_lets_replicas_drift_ends_at_the_next_check():
    """``train --break`` and ``--check-replicas``: exit code 1, the tensors and the step named."""
    bug = ("--dp", "2", "--break", "dp-forgets-a-block", "--check-replicas", "3")
    ended = mpirun(2, "-m", "tparallel", "train", *PLAIN, *bug)
    assert ended.code == 1
    assert "after step 3" in ended.out and "block.1" in ended.out
    fine = mpirun(2, "-m", "tparallel", "train", *PLAIN, "--dp", "2", "--check-replicas", "3")
    assert fine.code == 0, fine.out


@pytest.mark.mpi
def test_a_job_in_which_nothing_moves_ends_with_every_ranks_stack(tmp_path):
    """The watchdog, without any check: one rank sleeps, the others wait for it inside MPI."""
    program = (
        "import sys, time\nfrom tparallel import launch\n"
        "def main():\n    from mpi4py import MPI\n    launch.at('step 3')\n"
        "    if MPI.COMM_WORLD.rank == 1:\n        time.sleep(60)\n"
        "    MPI.COMM_WORLD.Barrier()\n"
        "sys.exit(launch.guarded(main, timeout=1))\n"
    )
    (tmp_path / "hung.py").write_text(program)
    ended = mpirun(3, str(tmp_path / "hung.py"), timeout=30)
    assert ended.code == 1 and ended.seconds < 10
    assert "no step was finished for 1 s" in ended.out
    for rank in range(3):
        assert f"rank {rank}/3 on" in ended.out
    assert "time.sleep(60)" in ended.out and ended.out.count("MPI.COMM_WORLD.Barrier()") == 2
