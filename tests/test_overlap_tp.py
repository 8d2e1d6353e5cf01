"""The sum of dx is posted before the weight gradients and awaited after them: the order, from the
timeline; the gain, on a simulated link."""

import time
from statistics import median

import numpy as np
import pytest
from mpitest import mpi

from tparallel.comm.link import Link
from tparallel.comm.mesh import Mesh
from tparallel.config import Layout, ModelConfig, TrainConfig
from tparallel.serial.parameters import initial
from tparallel.tensor_parallel import attention, mlp
from tparallel.tensor_parallel.model import layer_functions, region
from tparallel.tensor_parallel.split import shard
from tparallel.train import Trainer

MODEL = ModelConfig(L=2, D=128, H=4, T=64, V=64)
PARTS = (("attn.dx", attention, "attention"), ("mlp.dx", mlp, "mlp"))


@mpi(2)
@pytest.mark.parametrize("sp", ["", "keep", "regather"])
@pytest.mark.parametrize("overlap", [True, False])
def test_weight_gradients_are_computed_between_post_and_wait(comm, sp, overlap):
    """posted < dW begins < dW ends < awaited for attention and mlp, under both regions; with
    overlap off the wait comes first."""
    mesh = Mesh(Layout(tp=2, sp=sp), comm)
    tp = region(mesh.tp, MODEL, Layout(tp=2, sp=sp, overlap=overlap))
    p = shard(initial(MODEL, "block.0", 0, "float32"), comm.rank, 2)
    x = np.random.default_rng(0).normal(size=(2, 64 // (2 if sp else 1), 128)).astype("float32")
    f = layer_functions(tp, MODEL.V)["block"]
    spans: dict = {}
    real = {}
    for what, module, name in PARTS:
        real[what] = getattr(module, f"{name}_backward_weight")

        def timed(wcache, what=what):
            start = time.monotonic()
            grads = real[what](wcache)
            spans[what] = (start, time.monotonic())
            return grads

        setattr(module, f"{name}_backward_weight", timed)
    try:
        y, cache = f.forward(x, p)
        mesh.ledger.events = []
        f.backward(np.ones_like(y), cache, p)
    finally:
        for what, module, name in PARTS:
            setattr(module, f"{name}_backward_weight", real[what])
    for what in ("attn.dx", "mlp.dx"):
        (event,) = (e for e in mesh.ledger.events if e.what == what)
        start, end = spans[what]
        assert event.posted <= start, what
        assert (end <= event.waited) == overlap, what
        assert overlap or event.done <= start, what
    mesh.close()


@mpi(2)
def test_the_head_hides_its_sum_behind_the_gradient_of_the_table(comm):
    """posted before the product with dlogits, awaited after: between the two there is time."""
    mesh = Mesh(Layout(tp=2), comm, Link.parse("10gbit,20ms"))
    tp = region(mesh.tp, MODEL, Layout(tp=2))
    p = shard(initial(MODEL, "head", 0, "float32"), comm.rank, 2)
    f = layer_functions(tp, MODEL.V)["head"]
    x = np.random.default_rng(0).normal(size=(2, 64, 128)).astype("float32")
    logits, cache = f.forward(x, p)
    mesh.ledger.events = []
    f.backward(np.ones_like(logits), cache, p)
    (event,) = (e for e in mesh.ledger.events if e.what == "head.dn")
    assert event.waited - event.posted > 1e-5
    assert event.done - event.posted >= 0.02
    mesh.close()


@mpi(2)
@pytest.mark.parametrize("sp", ["", pytest.param("keep", marks=pytest.mark.slow)])
def test_a_transfer_hides_behind_as_much_work(comm, sp):
    """A link of 60 ms a round and weight gradients that take 60 ms asleep (a busy machine cannot
    stretch them much): backward saves those of attention and of the mlp, 120 ms less a margin.
    Each sum is one round: a reduce_scatter, or a short all_reduce of two ranks."""
    seconds = {}
    for overlap in (True, False):
        layout = Layout(tp=2, sp=sp, overlap=overlap)
        mesh = Mesh(layout, comm, Link.parse("10gbit,60ms"))
        f = layer_functions(region(mesh.tp, MODEL, layout), MODEL.V)["block"]
        p = shard(initial(MODEL, "block.0", 0, "float32"), comm.rank, 2)
        x = np.ones((2, 64 // (2 if sp else 1), 128), "float32")
        real = {name: getattr(module, f"{name}_backward_weight") for _, module, name in PARTS}

        def slow(name, real=real):
            def weight(wcache):
                time.sleep(0.06)
                return real[name](wcache)

            return weight

        try:
            for _, module, name in PARTS:
                setattr(module, f"{name}_backward_weight", slow(name))
            taken = []
            for _ in range(5):
                y, cache = f.forward(x, p)
                comm.Barrier()
                start = time.monotonic()
                f.backward(np.ones_like(y), cache, p)
                taken.append(time.monotonic() - start)
        finally:
            for _, module, name in PARTS:
                setattr(module, f"{name}_backward_weight", real[name])
        seconds[overlap] = median(taken)
        mesh.close()
    assert seconds[False] >= 0.24
    assert seconds[False] - seconds[True] > 0.06, seconds


@mpi(2, timeout=120)
@pytest.mark.slow
@pytest.mark.parametrize("sp", ["", "keep"])
def test_overlap_hides_transfers_on_a_simulated_link(comm, sp):
    """Steps with overlap on and off in turn: less is waited for, and the step is shorter.  Each of
    the two sums of a block hides up to the time of its weight gradients."""
    model = ModelConfig(L=2, D=384, H=4, T=128, V=64)
    train = TrainConfig(global_batch=4)
    rng = np.random.default_rng(0)
    rows = tuple(rng.integers(0, 64, (4, 128)) for _ in range(2))
    link = Link.parse("1gbit,5ms")
    trainers = [
        Trainer(model, train, Layout(tp=2, sp=sp, overlap=on), comm, link) for on in (True, False)
    ]
    seconds: list = [[], []]
    waits: list = [[], []]
    for step in range(8):
        for i, trainer in enumerate(trainers):
            trainer.mesh.ledger.clear()
            comm.Barrier()
            start = time.monotonic()
            trainer.step(step, *rows)
            seconds[i].append(time.monotonic() - start)
            waits[i].append(trainer.mesh.ledger.seconds)
    with_overlap, without = (median(s[2:]) for s in seconds)
    waited, waited_without = (median(w[2:]) for w in waits)
    for trainer in trainers:
        trainer.close()
    if comm.rank == 0:
        print(f"{sp or 'plain'}: step {with_overlap:.3f} s, without overlap {without:.3f} s")
    assert waited < waited_without, (waited, waited_without)
    assert with_overlap < without, (with_overlap, without)
