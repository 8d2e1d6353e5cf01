"""Recomputation: less is kept, the numbers are the same to the last bit, and what it costs."""

import tracemalloc

import numpy as np
import pytest
from layout_cases import MODEL, TRAIN, batch, same_bits
from mpitest import mpi

from tparallel.compare.memory import nbytes
from tparallel.config import Layout, ModelConfig, replace
from tparallel.serial.context import ORIGIN
from tparallel.serial.model import LAYERS
from tparallel.serial.parameters import initial
from tparallel.serial.recompute import RECOMPUTE
from tparallel.train import Trainer

BIG = ModelConfig(L=1, D=64, H=8, T=128, V=5)
DROPPING = replace(TRAIN, dropout=0.2)


def gradients(comm, layout, model=MODEL, train=DROPPING):
    trainer = Trainer(model, train, layout, comm)
    trainer.forward_backward(*batch(model, train))
    grads, wire = trainer.grads(), dict(trainer.mesh.ledger.totals)
    trainer.close()
    return grads, wire


@mpi(1, 2)
def test_recomputed_gradients_have_the_bits_of_kept_ones(comm):
    """Alone and under tp = 2, with dropout on: the same functions of the same numbers."""
    kept, _ = gradients(comm, Layout(tp=comm.size))
    for how in ("selective", "full"):
        again, _ = gradients(comm, Layout(tp=comm.size, recompute=how))
        assert comm.rank > 0 or same_bits(again, kept), how


@mpi(2)
def test_full_recomputation_repeats_the_two_sums_of_forward_in_every_block(comm):
    """attn.y and mlp.y twice; everything else, and all of selective recomputation, as before."""
    _, kept = gradients(comm, Layout(tp=2))
    for how, times in (("selective", 1), ("full", 2)):
        _, again = gradients(comm, Layout(tp=2, recompute=how))
        assert kept.keys() == again.keys()
        for key, total in again.items():
            expected = times if key.what in ("attn.y", "mlp.y") else 1
            assert total.wire == expected * kept[key].wire, (how, key)
            assert total.count == expected * kept[key].count, (how, key)


@pytest.mark.parametrize("how", RECOMPUTE)
def test_what_a_block_keeps_and_the_peak_of_its_backward(how, capsys):
    """By the allocator: what is live after forward is the closed form; backward's peak of a full
    block is never more than with everything kept, and what is kept falls in this order."""
    B, R = 2, 2 * BIG.T
    D, HT, F = BIG.D, BIG.H * BIG.T, BIG.F
    elements = {
        "none": R * (8 * D + 2 + HT + 2 * F),
        "selective": R * (8 * D + 2 + 2 * F),
        "full": R * D,
    }
    f = RECOMPUTE[how](LAYERS["block"])
    p = initial(BIG, "block.0", 0, "float32")
    x = np.random.default_rng(0).normal(size=(B, BIG.T, D)).astype("float32")
    tracemalloc.start()
    y, cache = f.forward(x, p, at=ORIGIN)
    live = tracemalloc.get_traced_memory()[0] - y.nbytes
    tracemalloc.reset_peak()
    f.backward(np.ones_like(y), cache, p)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    kept = 4 * elements[how]
    assert nbytes(cache) == kept
    given = x.nbytes if how == "full" else 0  # x was made before the allocator was watched
    assert abs(live + given - kept) < 20_000, (live, kept)
    with capsys.disabled():
        print(f"\n{how:9} keeps {kept / 2**20:5.2f} MiB, backward's peak {peak / 2**20:5.2f} MiB")


@pytest.mark.parametrize("how", RECOMPUTE)
def test_the_extra_flops_are_those_of_the_docstring(how):
    """Multiply-adds of every matrix product of a block's backward, counted as it runs."""
    f, p = RECOMPUTE[how](LAYERS["block"]), initial(BIG, "block.0", 0, "float64")
    p = {name: a.view(Counted) for name, a in p.items()}
    x = np.random.default_rng(0).normal(size=(2, BIG.T, BIG.D)).view(Counted)
    y, cache = f.forward(x, p, at=ORIGIN)
    Counted.flops = 0
    f.backward(np.ones_like(y), cache, p)
    D, F, T, R = BIG.D, BIG.F, BIG.T, 2 * BIG.T
    products = 2 * R * (4 * D * D + 2 * D * F) + 4 * R * T * D  # of a forward
    sums = 2 * R * (5 * D + F)  # of dy over rows, for the biases: a product with a row of ones
    extra = {"none": 0, "selective": 2 * R * T * D, "full": products}
    assert Counted.flops == 2 * products + sums + extra[how]


class Counted(np.ndarray):
    """An array whose matrix products, and those of what comes of it, are added up."""

    flops = 0

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        plain = [np.asarray(a) if isinstance(a, np.ndarray) else a for a in inputs]
        if out is not None:
            kwargs["out"] = tuple(np.asarray(a) for a in out)
        result = getattr(ufunc, method)(*plain, **kwargs)
        if ufunc is np.matmul:
            Counted.flops += 2 * result.size * plain[0].shape[-1]
        return result.view(Counted) if isinstance(result, np.ndarray) else result
