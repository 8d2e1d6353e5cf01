"""The closed forms against what really is held and sent, to the byte, on every rank."""

from math import prod

import numpy as np
import pytest
from mpi4py import MPI
from mpitest import mpi

from tparallel import predict
from tparallel.compare.measure import measure
from tparallel.config import Layout, ModelConfig, TrainConfig
from tparallel.layouts import for_ranks
from tparallel.pipeline_parallel.schedules import SCHEDULES
from tparallel.serial.parameters import count, shapes
from tparallel.tensor_parallel.split import shard_shape
from tparallel.train import Trainer

# Nothing divides anything more than it must: vocabulary by tp, layers by pp, vectors by dp.
ODD = {"L": 5, "D": 12, "H": 4, "T": 7, "V": 13, "F": 20}


def batch(model, G=8):
    """step -> random tokens and targets (G, T)."""

    def rows(step):
        rng = np.random.default_rng([17, step])
        return tuple(rng.integers(0, model.V, (G, model.T)) for _ in range(2))

    return rows


def part_of(comm, layout):
    """The first ranks, as many as the layout has; COMM_NULL on the others."""
    return comm.Split(0 if comm.rank < layout.ranks else MPI.UNDEFINED, comm.rank)


def assert_closed_forms(comm, model, train, layout):
    """What two steps on the first ranks hold and send, of every rank, is what is predicted."""
    part = part_of(comm, layout)
    if part == MPI.COMM_NULL:
        return
    ranks = measure(model, train, layout, part, batch(model))
    part.Free()
    if ranks:
        held, wire = predict.held(model, train, layout), predict.wire(model, train, layout)
        assert {k: [own.held[k] for own in ranks] for k in held} == held, layout.name
        assert {a: [own.wire[a] for own in ranks] for a in wire} == wire, layout.name


@mpi(2, 4, timeout=60)
@pytest.mark.parametrize(
    "tied, dtype, optimizer",
    [
        (False, "float32", "adamw"),
        (True, "float64", "sgd"),
        pytest.param(True, "float32", "adamw", marks=pytest.mark.slow),
        pytest.param(False, "float64", "sgd", marks=pytest.mark.slow),
    ],
)
def test_every_rank_holds_and_sends_what_the_closed_forms_say(comm, tied, dtype, optimizer):
    """Each layout of the list, stages and schedules that it leaves out: states, peak activations,
    the layer that stage 3 gathers, and wire bytes of each axis, all of them equal."""
    model = ModelConfig(**ODD, tied=tied)
    train = TrainConfig(steps=2, dtype=dtype, optimizer=optimizer)
    more = [Layout(tp=2, dp=2, zero=z, microbatches=2) for z in (0, 2) if comm.size == 4]
    more += [Layout(pp=2, dp=2, zero=z, microbatches=2) for z in (0, 2, 3) if comm.size == 4]
    more += [Layout(pp=2, schedule=name, microbatches=4) for name in SCHEDULES]
    more += [Layout(pp=2, schedule="interleaved", chunks=2, cut="cost", microbatches=2)]
    more += [Layout(tp=2, pp=2, schedule="zb-v", microbatches=4)] * (comm.size == 4)
    for layout in for_ranks(comm.size, model, train) + more:
        assert_closed_forms(comm, model, train, layout)


SEQUENCES = {**ODD, "T": 8}  # sequence parallelism cuts T


@mpi(4, timeout=60)
@pytest.mark.parametrize("Hkv", [pytest.param(4, marks=pytest.mark.slow), 2, 1])
@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_sequence_parallelism_and_recomputation_keep_and_send_their_closed_forms(comm, Hkv, dtype):
    """What is kept between forward and backward and what is sent, tp = 2 and 4, alone and with a
    pipeline or ZeRO, and with key/value heads that ranks share."""
    model, train = ModelConfig(**SEQUENCES, Hkv=Hkv), TrainConfig(steps=2, dtype=dtype)
    for layout in (
        *(Layout(tp=4, sp=sp) for sp in ("keep", "regather")),
        *(Layout(tp=2, recompute=r, microbatches=2) for r in ("none", "selective", "full")),
        Layout(tp=4, sp="keep", recompute="selective"),
        Layout(tp=4, sp="regather", recompute="full", microbatches=2),
        Layout(tp=2, pp=2, sp="regather", microbatches=4),
        Layout(tp=2, pp=2, sp="keep", recompute="full", microbatches=4),
        Layout(tp=2, dp=2, zero=3, sp="keep", recompute="selective", microbatches=2),
    ):
        assert_closed_forms(comm, model, train, layout)


@mpi(6, timeout=60)
@pytest.mark.parametrize("schedule", ["zb-v", "dualpipe-v"])
def test_a_table_at_both_ends_of_a_v_is_summed_once_for_each_micro_batch(comm, schedule):
    """Its first and its last use are on one stage, which is micro-batches ahead in one of them."""
    model, train = ModelConfig(**{**ODD, "L": 6}, tied=True), TrainConfig(steps=2)
    for zero in (2, 3):
        layout = Layout(pp=3, dp=2, microbatches=4, schedule=schedule, zero=zero)
        assert_closed_forms(comm, model, train, layout)


@pytest.mark.matrix
@mpi(6, 8, timeout=300)
@pytest.mark.parametrize("tied", [False, True])
def test_the_closed_forms_hold_on_more_ranks_too(comm, tied):
    """The whole list for 6 and for 8 ranks, with as little divisible as before."""
    model, train = ModelConfig(**ODD, tied=tied), TrainConfig(steps=2)
    for layout in for_ranks(comm.size, model, train):
        assert_closed_forms(comm, model, train, layout)


class Counting:
    """A communicator that counts the bytes that are handed to MPI for other ranks, and those that
    arrive (MPI says how many)."""

    def __init__(self, comm):
        self.comm, self.sent, self.arrived = comm, 0, 0

    def __getattr__(self, name):
        return getattr(self.comm, name)

    def Isend(self, x, to, tag):
        assert to != self.comm.rank
        self.sent += x.nbytes
        return self.comm.Isend(x, to, tag)

    def Irecv(self, x, source, tag):
        status = MPI.Status()
        self.comm.Recv(x, source, tag, status)
        self.arrived += status.Get_count(MPI.BYTE)
        return MPI.REQUEST_NULL


@mpi(4)
@pytest.mark.parametrize("tied", [False, True])
def test_the_ledger_counts_the_bytes_that_mpi_is_given(comm, tied):
    """All verbs of a step on each axis, counted below them; and what the ranks say that they sent
    is what MPI delivered to the others."""
    model, train = ModelConfig(**ODD, tied=tied), TrainConfig()
    for layout in for_ranks(4, model, train):
        part = part_of(comm, layout)
        if part == MPI.COMM_NULL:
            continue
        trainer = Trainer(model, train, layout, part)
        mesh = trainer.mesh
        axes = [axis for axis in (mesh.tp, mesh.pp, mesh.dp, mesh.ends) if axis]
        below = [Counting(axis._move.comm) for axis in axes]
        for axis, counting in zip(axes, below):
            axis._move.comm = counting
        trainer.step(0, *batch(model)(0))
        for name in ("tp", "pp", "dp"):
            counted = sum(b.sent for axis, b in zip(axes, below) if axis.name == name)
            assert counted == mesh.ledger.wire(name), (layout.name, name)
        sent = sum(t.wire for k, t in mesh.ledger.totals.items() if k.op != "broadcast")
        arrived = part.allreduce(sum(b.arrived for b in below))
        assert arrived == part.allreduce(sent), layout.name
        assert arrived > 0 or layout.ranks == 1
        trainer.close()
        part.Free()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_the_elements_of_a_rank_are_those_of_its_shards(tp, tied):
    """Layer by layer from the table of shapes: a second way to the same number, and serial's is
    the number of parameters."""
    model, train = ModelConfig(**ODD, tied=tied), TrainConfig()
    held = predict.held(model, train, Layout(tp=tp))
    for rank in range(tp):
        elements = sum(
            prod(shard_shape(name, shape, rank, tp))
            for p in shapes(model).values()
            for name, shape in p.items()
        )
        assert held["params"][rank] == held["grads"][rank] == 4 * elements
        assert held["optimizer"][rank] == 8 * elements
        assert tp > 1 or elements == count(model)


@pytest.mark.parametrize("zero, per_psi", [(0, 1), (1, 1), (2, 2.5), (3, 6)])
def test_what_a_zero_stage_sends_in_units_of_the_model(zero, per_psi):
    """dp = 2 and four micro-batches, per Ψ: 1, 1, 2.5 and 6 — stage 2 pays for accumulation."""
    model = ModelConfig(L=4, D=64, H=4, T=64, V=256)
    layout = Layout(dp=2, zero=zero, microbatches=4)
    sent = predict.wire(model, TrainConfig(), layout)["dp"]
    assert sent == [4 * per_psi * count(model) + 16] * 2  # 16: loss and norm, two float64


def test_a_serial_run_sends_nothing():
    """Not even the loss."""
    wire = predict.wire(ModelConfig(), TrainConfig(), Layout(microbatches=4))
    assert wire == {"tp": [0], "pp": [0], "dp": [0]}


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize("S, M", [(2, 1), (2, 4), (4, 4), (5, 8)])
def test_the_bubble_is_the_textbook_s(schedule, S, M):
    """(S−1) / (M+S−1), by simulation."""
    layout = Layout(pp=S, schedule=schedule, microbatches=M)
    assert predict.bubble(layout) == pytest.approx((S - 1) / (M + S - 1))
    assert predict.bubble(Layout(microbatches=M)) is None
