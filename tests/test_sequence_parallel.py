"""Sequence parallelism: the cut layers with the other pair of f and g, and everything outside the
region cut over T."""

import numpy as np
import pytest
from cut_layers import CUT, MODEL, inputs, run, run_whole
from groups import axes
from layout_cases import MODEL as WHOLE
from layout_cases import TRAIN, assert_equal, batch, errors, serial
from mpitest import mpi

from tparallel.compare.equality import relative_error, worst_error
from tparallel.config import Layout, TrainConfig, check, replace
from tparallel.errors import LayoutError
from tparallel.serial.model import LAYERS
from tparallel.tensor_parallel.region import SequenceParallel, TensorParallel
from tparallel.tensor_parallel.split import part, shard, unshard
from tparallel.train import Trainer

SHORT = replace(MODEL, T=12)  # 2, 3 and 4 ranks cut it
LONG = replace(WHOLE, T=8, tied=True)


def keep(axis):
    return SequenceParallel(axis)


def regather(axis):
    return SequenceParallel(axis, regather=True)


@mpi(4)
@pytest.mark.parametrize("again", [False, True])
def test_a_rank_computes_its_tokens_of_every_layer(comm, again):
    """Output and dx of its tokens, every parameter gradient whole, tp = 2, 3 and 4; the backward
    in one piece gives the bits of the halves."""
    for tp in axes(comm, 2, 3, 4):
        mine = slice(tp.rank * 12 // tp.size, (tp.rank + 1) * 12 // tp.size)
        for kind in ("embed", "block", "head"):
            x, p, dy = inputs(kind, SHORT)
            y, cache = LAYERS[kind].forward(x, p)
            dx, grads = LAYERS[kind].backward(dy, cache, p)
            if kind == "head":
                columns = part(SHORT.V, tp.rank, tp.size)
                x, y, dy = x[:, mine], y[..., columns], dy[..., columns].copy()
            else:
                x, y, dy = x if kind == "embed" else x[:, mine], y[:, mine], dy[:, mine]
            table = CUT(tp, SHORT.V, regather if again else keep)
            held = shard(p, tp.rank, tp.size)
            for way in (run, run_whole):
                our_y, our_dx, ours = way(table, kind, x, held, dy)
                where = (kind, tp.size, way.__name__)
                assert relative_error(our_y, y) <= 1e-12, where
                assert dx is our_dx is None or relative_error(our_dx, dx[:, mine]) <= 1e-12, where
                parts = tp._comm.allgather(ours)
                found = unshard(parts, {n: g.shape for n, g in grads.items()})
                error, name = worst_error({kind: found}, {kind: grads})
                assert error <= 1e-12, (*where, name)


@mpi(4, timeout=90)
@pytest.mark.parametrize("sp", ["keep", pytest.param("regather", marks=pytest.mark.slow)])
def test_training_equals_serial_with_a_pipeline_with_zero_and_alone(comm, sp):
    """Loss, norm, gradients, parameters after AdamW and SGD steps with clipping."""
    for layout in (
        Layout(tp=4, sp=sp),
        Layout(tp=2, pp=2, sp=sp, microbatches=4),
        Layout(tp=2, pp=2, schedule="zb-h1", sp=sp, microbatches=4),
        *(Layout(tp=2, dp=2, zero=zero, sp=sp, microbatches=2) for zero in (0, 2, 3)),
    ):
        for optimizer in ("adamw", "sgd"):
            train = replace(TRAIN, optimizer=optimizer)
            assert_equal(errors(LONG, train, layout, comm), optimizer, layout.name)


@mpi(2)
def test_a_norms_gradient_is_only_a_share_until_it_is_summed(comm):
    """Without the sum loss and activations stay right and norm gradients are far off: the field's
    most reported omission, and the only thing that ``finish`` is for here."""
    true = serial(LONG, TRAIN, 1)
    partial = SequenceParallel.partial
    try:
        SequenceParallel.partial = lambda self, name: False
        trainer = Trainer(LONG, TRAIN, Layout(tp=2, sp="keep"), comm)
        loss = trainer.forward_backward(*batch(LONG, TRAIN))
        grads = trainer.grads()
        trainer.close()
    finally:
        SequenceParallel.partial = partial
    if comm.rank == 0:
        assert relative_error(loss, true.losses[0]) <= 1e-12
        for layer, p in true.grads.items():
            for name, g in p.items():
                error = worst_error({layer: {name: grads[layer][name]}}, {layer: {name: g}})[0]
                assert (error > 1e-2) == ("norm" in name) or "b_kv" in name, (layer, name)


def sent(comm, **fields):
    """(axis, reason) -> wire bytes of one step."""
    trainer = Trainer(LONG, TRAIN, Layout(**fields), comm)
    trainer.step(0, *batch(LONG, TRAIN))
    out = {key: total for key, total in trainer.mesh.ledger.totals.items() if key.axis == "tp"}
    trainer.close()
    return out


@mpi(2, 4)
def test_the_bytes_are_those_of_plain_tensor_parallelism(comm):
    """An all_reduce is a reduce_scatter and an all_gather: the same wire bytes for activations, on
    every rank; norm gradients come to it, in one message per layer.  Gathering inputs again costs
    two more all_gathers per block and one for the head."""
    n, M = comm.size, 2
    plain, kept, again = (
        sent(comm, tp=n, sp=sp, microbatches=M) for sp in ("", "keep", "regather")
    )
    small = {"norm grads", "loss and norm", "loss.top", "loss.sums"}

    def activations(run):
        return sum(t.wire for k, t in run.items() if k.what not in small)

    assert {k.op for k in plain} == {"all_reduce"}
    assert {k.op for k in kept if k.what not in small} == {"all_gather", "reduce_scatter"}
    assert activations(kept) == activations(plain)
    (norms,) = (t for k, t in kept.items() if k.what == "norm grads")
    assert norms.count == M * (LONG.L + 1)
    assert norms.payload == M * (4 * LONG.L + 2) * LONG.D * 8
    x = 8 // M * LONG.T * LONG.D * 8
    extra = M * (2 * LONG.L + 1) * (n - 1) * x // n
    assert activations(again) == activations(kept) + extra


@mpi(2)
def test_the_pipeline_sends_only_the_tokens_of_a_rank(comm):
    """Under tp = 2 a stage's tp ranks each send half of x: the region is left before the send."""
    for sp, share in (("", 1), ("keep", 2)):
        tp = Layout(tp=2, sp=sp)
        trainer = Trainer(LONG, TRAIN, tp, comm)
        assert trainer.executor.shape == (8, LONG.T // share, LONG.D)
        trainer.close()


@mpi(2)
def test_f_and_g_are_each_others_adjoints(comm):
    """<f(x), dy> = <x, f backward(dy)> over all ranks, and so for g: why the backward of a copy is
    a sum.  Dot products of what all ranks hold, for both regions."""
    for axis in axes(comm, 2):
        for region in (TensorParallel, keep):
            tp, rng = region(axis), np.random.default_rng(comm.rank)
            cut = region is keep  # then each rank holds its own tokens outside the region
            outside = np.random.default_rng(100 * comm.rank * cut).normal(
                size=(2, 8 // (2 if cut else 1), 3)
            )
            inside = rng.normal(size=(2, 8, 3))

            def over_ranks(a, b, everywhere):
                total = comm.allreduce(float((a * b).sum()))
                return total if everywhere else total / 2

            entered = tp.enter(outside, what="x")
            back = tp.enter_backward(inside, what="dx").wait()
            assert np.isclose(over_ranks(entered, inside, True), over_ranks(outside, back, cut))
            left = tp.leave(inside, what="y")
            back = tp.leave_backward(outside, what="dy")
            assert np.isclose(over_ranks(left, outside, cut), over_ranks(inside, back, True))


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"tp": 4, "sp": "keep"}, r"tp must divide the sequence.*T = 6, tp = 4.*no sp"),
        ({"tp": 1, "sp": "keep"}, r"cuts T over tp: sp = keep, tp = 1"),
        ({"tp": 2, "sp": "yes"}, r"sp = yes. Use sp keep, regather or no sp"),
    ],
)
def test_what_cannot_be_cut_is_refused(fields, said):
    """Before the first message, with the way out."""
    with pytest.raises(LayoutError, match=said):
        check(WHOLE, TrainConfig(), Layout(**fields))
