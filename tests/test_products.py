"""Every layout, and every product of layouts, trains the model that one process trains."""

import numpy as np
import pytest
from layout_cases import MODEL, TRAIN, assert_equal, batch, errors, serial
from mpitest import mpi

from tparallel.config import Layout, ModelConfig, TrainConfig, replace
from tparallel.layouts import for_ranks
from tparallel.train import Trainer

SGD = replace(TRAIN, optimizer="sgd")


def layouts_of(ranks, train):
    """Those of the one list that use all the ranks, with two micro-batches: fewer messages."""
    found = [layout for layout in for_ranks(ranks, MODEL, train) if layout.ranks == ranks]
    return [replace(layout, microbatches=2) for layout in found]


@pytest.mark.parametrize(
    "optimizer, tied",
    [
        ("sgd", False),
        ("adamw", True),
        pytest.param("sgd", True, marks=pytest.mark.matrix),
        pytest.param("adamw", False, marks=pytest.mark.matrix),
    ],
)
@mpi(4, timeout=90)
def test_every_layout_of_four_ranks_trains_as_one_process_does(comm, optimizer, tied):
    """Loss, norm, every gradient, parameters and moments after three clipped steps, held-out
    loss, a vocabulary that nothing divides; and all copies of a parameter are the same bits."""
    model, train = replace(MODEL, tied=tied), replace(TRAIN, optimizer=optimizer)
    assert min(serial(model, train, 1).norms) > train.clip
    layouts = layouts_of(4, train)
    assert {(x.tp > 1, x.pp > 1, x.dp > 1) for x in layouts} > {(True, True, False)}
    for layout in layouts:
        assert_equal(errors(model, train, layout, comm), optimizer, layout.name)


@mpi(8, timeout=180)
def test_tensor_pipeline_and_data_parallel_together_train_as_one_process_does(comm):
    """2 × 2 × 2 with each ZeRO stage, tied, AdamW; the schedules take turns."""
    model = replace(MODEL, tied=True)
    for zero, schedule in enumerate(("gpipe", "1f1b", "gpipe", "1f1b")):
        layout = Layout(tp=2, pp=2, dp=2, zero=zero, schedule=schedule, microbatches=2)
        assert_equal(errors(model, TRAIN, layout, comm), "adamw", layout.name)


@mpi(6, timeout=60)
def test_sizes_that_are_not_powers_of_two_train_as_one_process_does(comm):
    """Three heads ways, three stages of four layers, three replicas."""
    model = ModelConfig(L=4, D=12, H=6, T=6, V=23, F=18)
    train = replace(TRAIN, global_batch=12)
    for text in ("tp=3,pp=2", "tp=2,pp=3,microbatches=3", "tp=2,dp=3,zero=2", "pp=2,dp=3,zero=3"):
        assert_equal(errors(model, train, Layout.parse(text), comm), "adamw", text)


@mpi(4)
def test_float32_layouts_agree_with_serial_to_float32s_own_precision(comm):
    """Loss and gradients to 1e-5: the dtype is the configuration's from end to end."""
    train = replace(SGD, dtype="float32")
    for text in ("pp=2,tp=2,microbatches=2", "dp=2,tp=2,zero=3"):
        e = errors(MODEL, train, Layout.parse(text), comm)
        assert e.loss + e.grads[0] > 0 and max(e.loss, e.grads[0], e.params[0]) < 1e-5, (text, e)
        trainer = Trainer(MODEL, train, Layout.parse(text), comm)
        trainer.step(0, *batch(MODEL, train))
        for vectors in (trainer.store.params, trainer.store.grads):
            assert {a.dtype.name for a in vectors.values()} == {"float32"}
        trainer.close()


@mpi(4)
def test_evaluation_leaves_parameters_gradients_and_moments_untouched(comm):
    """Bit for bit, in the middle of a step too; and twice gives the same number."""
    for text in ("pp=2,dp=2,zero=3,microbatches=2", "tp=2,pp=2", "dp=4,zero=1"):
        trainer = Trainer(MODEL, TRAIN, Layout.parse(text), comm)
        trainer.step(0, *batch(MODEL, TRAIN))
        trainer.forward_backward(*batch(MODEL, TRAIN, 1))
        store = trainer.store
        held = [*store.params.values(), *store.grads.values()]
        held += [a for part in store.moments for a in part.values()]
        before = [a.tobytes() for a in held]
        first = trainer.evaluate(*batch(MODEL, TRAIN, 99))
        assert first == trainer.evaluate(*batch(MODEL, TRAIN, 99))
        assert [a.tobytes() for a in held] == before and any(np.any(a) for a in held)
        left = trainer.executor
        assert not (left.caches or left.wcaches or left.x or left.dy)
        trainer.close()


@mpi(2)
def test_a_batch_of_another_size_is_refused(comm):
    """Rows that no rank took would still count as tokens: a smaller loss, and nobody would see."""
    trainer = Trainer(MODEL, TrainConfig(global_batch=4), Layout(dp=2), comm)
    for G, T in ((8, MODEL.T), (2, MODEL.T), (4, MODEL.T - 1)):
        rows = np.zeros((G, T), int)
        for run in (trainer.evaluate, trainer.forward_backward):
            with pytest.raises(ValueError, match=r"a global batch is \(G, T\) = \(4, 6\)"):
                run(rows, rows)
