"""Grouped-query attention: key/value heads that several query heads read, and under tensor
parallelism heads that several ranks hold."""

import numpy as np
import pytest
from cut_layers import CUT, MODEL, inputs, run
from groups import axes
from layout_cases import MODEL as WHOLE
from layout_cases import TRAIN, assert_equal, batch, errors
from mpitest import mpi

from tparallel.compare.equality import relative_error, worst_error
from tparallel.config import Layout, ModelConfig, TrainConfig, check, replace
from tparallel.errors import ConfigError, LayoutError
from tparallel.serial.heads import heads_backward, heads_forward
from tparallel.serial.model import LAYERS
from tparallel.tensor_parallel.region import TensorParallel, sum_over
from tparallel.tensor_parallel.split import counts_here, shard, unshard
from tparallel.train import Trainer

GROUPED = replace(WHOLE, T=8, Hkv=2)


@pytest.mark.parametrize("Hkv", [1, 2, 3, 6])
def test_it_is_multi_head_attention_whose_key_value_heads_are_repeated(Hkv):
    """Each key/value head copied to the H/Hkv query heads that read it: the same z and dq, and a
    gradient that is the sum over the copies."""
    rng, R = np.random.default_rng(0), 6 // Hkv
    q, dz = rng.normal(size=(2, 2, 5, 6, 4))
    kv = rng.normal(size=(2, 5, 2, Hkv, 4))
    z, cache = heads_forward(q, kv)
    dq, dkv = heads_backward(dz, cache)
    many_z, many = heads_forward(q, np.repeat(kv, R, axis=3))
    many_dq, many_dkv = heads_backward(dz, many)
    assert relative_error(z, many_z) < 1e-14
    assert relative_error(dq, many_dq) < 1e-13
    assert relative_error(dkv, many_dkv.reshape(2, 5, 2, Hkv, R, 4).sum(4)) < 1e-13


@mpi(4)
@pytest.mark.parametrize("Hkv", [1, 2, 4, 12])
def test_a_shared_heads_gradient_is_the_sum_over_the_ranks_that_share_it(comm, Hkv):
    """tp = 2 and 4, key/value heads fewer than ranks, as many, and more: a whole block."""
    model = replace(MODEL, Hkv=Hkv)
    for axis in axes(comm, 2, 4):
        c = max(1, axis.size // Hkv)
        shared = axis.split(color=axis.rank // c) if c > 1 else None
        x, p, dy = inputs("block", model)
        y, cache = LAYERS["block"].forward(x, p)
        dx, grads = LAYERS["block"].backward(dy, cache, p)
        table = CUT(axis, model.V, lambda a, shared=shared: TensorParallel(a, shared))
        our_y, our_dx, ours = run(table, "block", x, shard(p, axis.rank, axis.size), dy)
        assert relative_error(our_y, y) <= 1e-12 and relative_error(our_dx, dx) <= 1e-12
        found = unshard(axis._comm.allgather(ours), {n: g.shape for n, g in grads.items()})
        error, name = worst_error({"block": found}, {"block": grads})
        assert error <= 1e-12, (axis.size, name)
        sent = {key.what: total.count for key, total in axis.ledger.totals.items()}
        assert ("kv grads" in sent) == (c > 1)


@mpi(4, timeout=90)
@pytest.mark.parametrize("Hkv", [1, 2])
def test_training_equals_serial_and_the_norm_counts_a_shared_head_once(comm, Hkv):
    """With clipping, which follows the norm; alone, under sequence parallelism, with ZeRO."""
    model = replace(GROUPED, Hkv=Hkv)
    for layout in (
        Layout(tp=4),
        Layout(tp=4, sp="regather", recompute="selective"),
        *(Layout(tp=2, dp=2, zero=zero, microbatches=2) for zero in (1, 3)),
        Layout(tp=2, pp=2, microbatches=2, sp="keep"),
    ):
        assert_equal(errors(model, TRAIN, layout, comm), "adamw", layout.name)


def test_each_number_of_the_model_counts_on_one_rank_of_its_copies():
    """Sizes that count, over all ranks, add up to the whole: cut, replicated and shared."""
    shapes = {"attn.w_kv": (24, 2, 2, 4), "attn.w_q": (24, 12, 4), "norm1.g": (24,)}
    for name, shape in shapes.items():
        for n in (1, 2, 4, 12):
            held = [shard({name: np.zeros(shape)}, r, n)[name].size for r in range(n)]
            counted = sum(held[r] for r in range(n) if counts_here(name, shape, r, n))
            assert counted == np.prod(shape), (name, n)


@mpi(4)
def test_ranks_that_share_a_head_hold_the_same_numbers_after_training(comm):
    """tp = 4 over two key/value heads: ranks 0 and 1 hold one, ranks 2 and 3 the other."""
    trainer = Trainer(GROUPED, TRAIN, Layout(tp=4), comm)
    for step in range(3):
        trainer.step(step, *batch(GROUPED, TRAIN, step))
    mine = trainer.store.gather("block.1")["attn.w_kv"].tobytes()
    first, second, third, fourth = comm.allgather(mine)
    assert first == second and third == fourth and first != third
    trainer.close()


def test_what_does_not_fit_is_refused():
    """Heads that do not divide, and a tp that would cut a group in two."""
    with pytest.raises(ConfigError, match=r"Hkv must divide H.*H = 4, Hkv = 3. Use Hkv = 2"):
        ModelConfig(H=4, Hkv=3)
    with pytest.raises(LayoutError, match=r"or they it: Hkv = 3, tp = 2. Use tp 1, 3 or 6"):
        check(ModelConfig(D=24, H=6, Hkv=3, F=36), TrainConfig(), Layout(tp=2))


def test_nothing_is_summed_where_nothing_is_shared():
    """No names, no message: the axis is not even looked at."""
    sum_over(None, {"w": np.ones(3)}, [], what="nothing")
