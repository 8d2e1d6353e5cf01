"""The CuPy path on a machine without a GPU: every layout on a strict stand-in, against NumPy."""

import os
import pickle
from pathlib import Path

import pytest
from layout_cases import MODEL, TRAIN, batch
from mpitest import mpi, mpirun
from standin_cupy import CUPY

from tparallel import predict
from tparallel.compare.equality import relative_error
from tparallel.compare.measure import measure
from tparallel.compare.proof import BOUND, prove, reference
from tparallel.config import replace
from tparallel.layouts import for_ranks
from tparallel.serial.train import initial_params, train_step, zeros_like

OPTIONS = str(Path(__file__).with_name("option_jobs.py"))
MODEL = replace(MODEL, T=8)  # sequence parallelism cuts T
TRAIN = replace(TRAIN, steps=1, global_batch=4)


def rows(step):
    return batch(MODEL, TRAIN, step)


@pytest.fixture(scope="session")
def numpys(tmp_path_factory):
    """What NumPy finds on one process, in a file for ranks that have no NumPy backend."""
    params = initial_params(MODEL, TRAIN)
    moments = zeros_like(params), zeros_like(params)
    truth = reference(MODEL, TRAIN, *rows(0))
    losses = [train_step(params, moments, *rows(k), k, TRAIN)[0] for k in range(TRAIN.steps)]
    path = tmp_path_factory.mktemp("numpy") / "truth"
    path.write_bytes(pickle.dumps((truth, losses)))
    return path


def on_part(comm, layout, work):
    """``work(comm)`` on as many ranks as the layout has; None elsewhere."""
    part = comm.Split(comm.rank // layout.ranks, comm.rank)
    found = work(part) if comm.rank < layout.ranks else None
    part.Free()
    return found


def agrees_with_numpy(comm, layout, truth, losses, transports=("direct", "staged")):
    """The proof of ``tparallel compare`` by the first transport, its measurement by the second."""
    os.environ["TPARALLEL_TRANSPORT"] = transports[0]
    proof = on_part(comm, layout, lambda part: prove(MODEL, TRAIN, layout, part, rows(0), truth))
    os.environ["TPARALLEL_TRANSPORT"] = transports[1]
    ranks = on_part(comm, layout, lambda part: measure(MODEL, TRAIN, layout, part, rows))
    if proof:
        assert max(proof.loss, proof.norm, proof.gradient) <= BOUND, (layout.name, proof)
    if ranks:
        assert relative_error(ranks[0].losses, losses) <= BOUND, layout.name
        held, wire = predict.held(MODEL, TRAIN, layout), predict.wire(MODEL, TRAIN, layout)
        assert {k: [own.held[k] for own in ranks] for k in held} == held, layout.name
        assert {a: [own.wire[a] for own in ranks] for a in wire} == wire, layout.name


@mpi(4, timeout=60, env=CUPY, fresh=True)
def test_every_layout_finds_numpys_gradients_and_keeps_to_the_closed_forms(comm, numpys):
    """Loss, norm and every gradient within 1e-12; bytes held and sent to the byte; both
    transports."""
    for layout in for_ranks(comm.size, MODEL, TRAIN):
        agrees_with_numpy(comm, layout, *pickle.loads(numpys.read_bytes()))


@pytest.mark.slow
@mpi(8, timeout=60, env=CUPY, fresh=True)
def test_all_three_methods_at_once_too(comm, numpys):
    """2 × 2 × 2 with each ZeRO stage."""
    for layout in for_ranks(comm.size, MODEL, TRAIN):
        if min(layout.tp, layout.pp, layout.dp) > 1:
            agrees_with_numpy(comm, layout, *pickle.loads(numpys.read_bytes()))


@mpi(2, timeout=60, env=CUPY, fresh=True)
def test_inside_a_step_the_host_waits_only_for_messages_the_loss_and_the_norm(comm):
    """One wait per call of MPI, one for the loss, one for loss and norm together: nothing else,
    in any layout."""
    from cupy._queue import queue
    from mpi4py import MPI

    from tparallel.train import Trainer

    os.environ["TPARALLEL_TRANSPORT"] = "direct"
    for layout in for_ranks(comm.size, MODEL, TRAIN):
        alone = MPI.COMM_SELF if layout.ranks == 1 else comm
        trainer = Trainer(MODEL, TRAIN, layout, alone)
        trainer.step(0, *rows(0))
        queue.waits.clear()
        trainer.step(1, *rows(1))
        waits = [why for why in queue.waits if "comm/transport.py" not in why]
        trainer.close()
        assert len(waits) == 1 + (trainer.mesh.pp.rank == layout.pp - 1), (layout.name, waits)


@pytest.mark.parametrize("transport", ["direct", "staged"])
def test_every_option_gives_numpys_bits(numpys_bits, transport):
    """Both halves (sent as 16-bit integers, summed in float32), offloading, quantisation,
    recomputation, dropout, tied tables, a zero-bubble schedule, Llama's layers."""
    ours = mpirun(2, OPTIONS, env={**CUPY, "TPARALLEL_TRANSPORT": transport})
    assert ours.code == 0, ours.out
    lines = [line for line in ours.out.splitlines() if line.startswith("rank")]
    assert len(lines) == 26 and lines == numpys_bits


@pytest.fixture(scope="module")
def numpys_bits():
    job = mpirun(2, OPTIONS, env={"TPARALLEL_KERNELS": "plain", "TPARALLEL_BACKEND": "numpy"})
    assert job.code == 0, job.out
    return job.out.splitlines()
