"""Mixed precision: half for what is stored and sent, float32 for arithmetic and for the master."""

import numpy as np
import pytest
from layout_cases import MODEL, TRAIN, batch
from mpitest import mpi

from tparallel.compare.equality import worst_error
from tparallel.config import Layout, ModelConfig, TrainConfig, replace
from tparallel.serial.adamw import adamw_update, learning_rate
from tparallel.serial.parameters import decayed
from tparallel.serial.train import initial_params, loss_and_grads, zeros_like
from tparallel.train import Trainer
from tparallel.zero.precision import LossScale, storage_dtype

HALVES = ["bfloat16", "float16"]


@pytest.fixture(autouse=True)
def _ml_dtypes(request):
    if "bfloat16" in request.node.name:
        pytest.importorskip("ml_dtypes")


def by_the_definition(model, train, steps):
    """Micikevicius et al. 2018, figure 1, in serial's words: (params, master, m)."""
    half = storage_dtype(train.dtype)
    scale = LossScale(train).scale
    wide = replace(train, dtype="float32")
    master = initial_params(model, wide)
    m, v = zeros_like(master), zeros_like(master)
    for step in range(steps):
        params = rounded(master, half)
        _, grads = loss_and_grads(params, *batch(model, train, step))
        for layer, p in master.items():
            for name, w in p.items():
                g = (grads[layer][name] * np.float32(scale)).astype(half).astype(np.float32)
                decay = train.weight_decay if decayed(name) else 0.0
                lr = learning_rate(step, train)
                g *= 1 / scale
                adamw_update(w, g, m[layer][name], v[layer][name], step, lr, decay, train)
    return rounded(master, half), master, m


def rounded(tree, half):
    return {
        layer: {name: a.astype(half).astype(np.float32) for name, a in p.items()}
        for layer, p in tree.items()
    }


@mpi(1)
@pytest.mark.parametrize("dtype", HALVES)
def test_training_in_half_is_its_definition(comm, dtype):
    """Half parameters are the rounded master, gradients are rounded once, the update is float32.
    The loss scale is a power of two: multiplying the loss or its gradients is the same."""
    train = replace(TRAIN, dtype=dtype, clip=0.0, loss_scale=1024.0)
    trainer = Trainer(MODEL, train, Layout(), comm)
    for step in range(3):
        trainer.step(step, *batch(MODEL, train, step))
    params, master, m = by_the_definition(MODEL, train, 3)
    ours = {u: {n: a.astype(np.float32) for n, a in p.items()} for u, p in trainer.params().items()}
    state = trainer.store.optimizer.state
    assert worst_error(trainer.store.whole("optimizer", state["master"]), master)[0] <= 1e-6
    assert worst_error(trainer.store.whole("optimizer", state["m"]), m)[0] <= 1e-5
    for layer, p in params.items():
        for name, want in p.items():
            one_unit = 2.0 ** (-7 if dtype == "bfloat16" else -10)
            assert np.abs(ours[layer][name] - want).max() <= one_unit * np.abs(want).max()
            assert np.mean(ours[layer][name] == want) > 0.99  # else a tie fell the other way
    trainer.close()


@mpi(3)
@pytest.mark.parametrize("dtype", HALVES)
def test_every_stage_trains_to_the_same_bits_in_half(comm, dtype):
    """Sums of half numbers too are made in rank order, in float32, and rounded once."""
    train = replace(TRAIN, dtype=dtype, global_batch=6)
    ends = []
    for zero in (0, 1, 2, 3):
        trainer = Trainer(MODEL, train, Layout(dp=3, zero=zero), comm)
        said = [trainer.step(k, *batch(MODEL, train, k)) for k in range(3)]
        state = trainer.store.optimizer.state["master"]
        whole = [trainer.store.whole("params", trainer.store.params)]
        whole.append(trainer.store.whole("optimizer", state))
        bits = [a.tobytes() for tree in whole for p in tree.values() for a in p.values()]
        ends.append((said, bits))
        trainer.close()
    assert all(end == ends[0] for end in ends[1:])


@mpi(4)
@pytest.mark.parametrize("dtype", HALVES)
def test_a_table_that_two_stages_share_stays_one_table_in_half(comm, dtype):
    """Both ends of the pipeline hold the same bits after every step, whatever the stage of ZeRO;
    and they are the table of one process, but for one rounding of the second gradient."""
    model, train = replace(MODEL, tied=True), replace(TRAIN, dtype=dtype, optimizer="sgd", clip=0.0)
    alone = Trainer(model, train, Layout(), comm.Split(comm.rank))
    for k in range(3):
        alone.step(k, *batch(model, train, k))
    want = alone.params()["vocab"]["w_tok"].astype(np.float32)
    unit = 2.0 ** (-7 if dtype == "bfloat16" else -10)
    for zero in (0, 1, 2, 3):
        trainer = Trainer(model, train, Layout(pp=2, dp=2, zero=zero, microbatches=2), comm)
        for k in range(3):
            trainer.step(k, *batch(model, train, k))
        table = trainer.store.whole("params", trainer.store.params)["vocab"]["w_tok"]
        assert len(set(comm.allgather(table.tobytes()))) == 1
        assert np.abs(table.astype(np.float32) - want).max() <= 2 * unit * np.abs(want).max()
        trainer.close()
    alone.close()


@mpi(2)
def test_a_step_that_overflows_float16_is_skipped_by_every_rank(comm):
    """The scale is halved until the gradients fit, nothing changes meanwhile, and after
    ``scale_window`` good steps it is doubled."""
    train = replace(TRAIN, dtype="float16", loss_scale=2.0**24, scale_window=3)
    trainer = Trainer(MODEL, train, Layout(dp=2, zero=2), comm)
    scale = trainer.store.loss_scale
    before = {b: a.copy() for b, a in trainer.store.params.items()}
    with np.errstate(over="ignore", invalid="ignore"):
        first = trainer.step(0, *batch(MODEL, train))
        assert not np.isfinite(first[1]) and np.isfinite(first[0])
        assert (scale.scale, scale.skipped) == (2.0**23, 1)
        same = [np.array_equal(trainer.store.params[b], a) for b, a in before.items()]
        assert all(same) and not any(m.any() for m in trainer.store.moments[0].values())
        while scale.good == 0:
            trainer.step(0, *batch(MODEL, train))
    fits, skipped = scale.scale, scale.skipped
    assert 2 < skipped < 24 and fits == 2.0 ** (24 - skipped)
    assert not np.array_equal(trainer.store.params["head"], before["head"])
    trainer.step(1, *batch(MODEL, train))
    trainer.step(2, *batch(MODEL, train))
    assert scale.scale == 2 * fits
    assert len(set(comm.allgather((fits, skipped)))) == 1
    trainer.close()


@mpi(1)
def test_the_loss_scale_rescues_small_gradients(comm):
    """Without it small gradients come near float16's smallest number, 6e-8, and lose their digits
    or vanish; with twice the scale nothing more is won.  The norm is unscaled all the same."""
    model = ModelConfig(L=2, D=32, H=2, T=32, V=64)
    norms, grads = [], []
    for scale in (2.0**12, 2.0**13, 1.0):
        train = TrainConfig(global_batch=8, dtype="float16", loss_scale=scale, lr=0.0)
        trainer = Trainer(model, train, Layout(), comm)
        norms.append(trainer.step(0, *batch(model, train))[1])
        grads.append(trainer.store.grads["block.0"].astype(np.float32) / scale)
        trainer.close()
    true = np.abs(grads[0])
    lost = [np.mean(np.abs(g - grads[0])[true > 0] > 0.02 * true[true > 0]) for g in grads[1:]]
    assert lost[0] < 1e-4 and lost[1] > 5e-3, lost
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-2)


@mpi(2)
def test_half_precision_trains_about_as_well_as_float32(comm):
    """Sixty steps on a text with structure, ZeRO-3: the losses at the end."""
    model = ModelConfig(L=2, D=32, H=2, T=16, V=32)
    steps = np.random.default_rng(0).integers(0, 3, (60, 8, 17)).cumsum(-1) % 32
    ends = {}
    for dtype in ("float32", "float16"):
        train = TrainConfig(steps=60, warmup=5, lr=1e-2, dtype=dtype)
        trainer = Trainer(model, train, Layout(dp=2, zero=3), comm)
        ends[dtype] = [trainer.step(k, s[:, :-1], s[:, 1:])[0] for k, s in enumerate(steps)][-1]
        trainer.close()
    assert ends["float32"] < 1.5 and ends["float16"] == pytest.approx(ends["float32"], rel=0.01)
