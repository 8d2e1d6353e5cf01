"""Overlap: the order in which transfers are posted and awaited, and what it gains on a slow link.

Between ranks that share memory a transfer *is* work of the same cores, so that overlap gains
nothing there; on a link of its own it hides the transfer behind the computation.
"""

import time
from statistics import median

import pytest
from layout_cases import MODEL, TRAIN, batch
from mpitest import mpi

from tparallel.comm.link import Link
from tparallel.config import Layout, replace
from tparallel.train import Trainer

BATCH24 = replace(TRAIN, global_batch=24)
LAYERS = ["embed", *(f"block.{i}" for i in range(MODEL.L)), "head"]


def timeline(comm, layout):
    """One step: its transfers in the order of their posts, and (layer, start, end) of each
    layer's computation in each pass."""
    trainer = Trainer(MODEL, BATCH24, layout, comm)
    rows = batch(MODEL, BATCH24)
    trainer.step(0, *rows)
    computed = []
    functions = trainer.executor.chunks[0].functions
    for layer, does in functions.items():
        clocked = {f: clock(getattr(does, f), layer, computed) for f in ("forward", "backward")}
        functions[layer] = does._replace(**clocked)
    trainer.mesh.ledger.events = []
    trainer.forward_backward(*rows)
    events = [e for e in trainer.mesh.ledger.events if e.axis == "dp"]
    trainer.close()
    return sorted(events, key=lambda e: e.posted), computed


def clock(function, layer, computed):
    def clocked(*arguments, **more):
        start = time.monotonic()
        out = function(*arguments, **more)
        computed.append((layer, start, time.monotonic()))
        return out

    return clocked


def of(events, op):
    return [(e.what.split()[0], e.posted, e.waited) for e in events if e.op == op]


@mpi(2)
def test_parameters_of_the_next_layer_are_posted_before_this_one_is_computed(comm):
    """Stage 3, forward and backward: the next layer's parameters are asked for before this one is
    computed, and awaited after; without overlap they are asked for after."""
    both = [*LAYERS, *LAYERS[::-1]]
    for overlap in (True, False):
        events, computed = timeline(comm, Layout(dp=2, zero=3, overlap=overlap))
        gathers = of(events, "all_gather")
        assert [name for name, *_ in gathers] == [name for name, *_ in computed] == both
        for i, (_, posted, awaited) in enumerate(gathers):
            assert posted < awaited < computed[i][1]
            if i and i != len(LAYERS):  # the first of a pass has nothing to hide behind
                _, start, end = computed[i - 1]
                assert end < awaited and (posted < start if overlap else posted > end)


@mpi(2)
@pytest.mark.parametrize(
    "zero, op", [(0, "all_reduce"), (1, "reduce_scatter"), (3, "reduce_scatter")]
)
def test_gradients_leave_as_soon_as_a_layers_backward_is_done(comm, zero, op):
    """From the last layer to the first; each is posted before the next layer's are made, and
    awaited after; without overlap it is awaited before the next layer's backward begins."""
    for overlap in (True, False):
        events, computed = timeline(comm, Layout(dp=2, zero=zero, overlap=overlap))
        sums = of(events, op)
        assert [name for name, *_ in sums] == LAYERS[::-1]
        backward = computed[len(LAYERS) :]
        for i, (_, posted, awaited) in enumerate(sums[:-1]):
            _, start, end = backward[i + 1]
            assert backward[i][2] < posted < start
            assert awaited > end if overlap else awaited < start


@mpi(2)
def test_with_micro_batches_stage_0_and_1_send_in_the_last_one_only(comm):
    """One sum per layer and step, in the last backward; stage 2 sums in every one."""
    for zero, each in ((0, "microbatch"), (1, "microbatch"), (2, "step")):
        layout = Layout(dp=2, zero=zero, microbatches=3, reduce_each=each)
        events, _ = timeline(comm, layout)
        sums = [e for e in events if e.op in ("all_reduce", "reduce_scatter")]
        assert len(sums) == len(LAYERS)
    events, _ = timeline(comm, Layout(dp=2, zero=2, microbatches=3))
    assert len(of(events, "reduce_scatter")) == 3 * len(LAYERS)


@mpi(2)
def test_a_bucket_leaves_with_its_last_layer(comm):
    """Two messages for six layers, the later layers' first."""
    size = 8 * 2700  # three layers' worth of float64
    events, _ = timeline(comm, Layout(dp=2, zero=1, bucket_bytes=size))
    names = [name for name, *_ in of(events, "reduce_scatter")]
    assert len(names) < len(LAYERS) and names == sorted(names, key=position, reverse=True)
    assert any(".." in name for name in names)


def position(name):
    return LAYERS.index(name.split("..")[0])


# A layer computes for 40 ms each way, a message takes 20 ms, and so does a short all_reduce of two
# ranks: what a step takes then, message after message or hidden, whatever else the machine does.
# 6 layers.
COMPUTE, LATENCY = 0.04, 0.02
EXPECTED = {  # stage: (without overlap, with), in units of 20 ms, the loss's all_reduce included
    0: (12 + 12 + 6 + 1, 12 + 12 + 1 + 1),
    1: (12 + 12 + 6 + 6 + 1, 12 + 12 + 1 + 3 + 1),
    3: (12 + 6 + 12 + 6 + 6 + 1, 1 + 12 + 1 + 12 + 1 + 1),
}


@mpi(2, timeout=60)
@pytest.mark.parametrize(
    "zero", [pytest.param(z, marks=[pytest.mark.slow] * (z != 3)) for z in EXPECTED]
)
def test_on_a_slow_link_overlap_hides_the_messages_behind_the_computation(comm, zero):
    """The gain in seconds is the number of hidden messages times their time."""
    taken = {}
    for overlap in (False, True):
        link = Link(LATENCY, 1e12)
        trainer = Trainer(MODEL, TRAIN, Layout(dp=2, zero=zero, overlap=overlap), comm, link)
        functions = trainer.executor.chunks[0].functions
        for layer, does in functions.items():
            slowed = {f: slow(getattr(does, f)) for f in ("forward", "backward")}
            functions[layer] = does._replace(**slowed)
        times = [seconds(comm, trainer, step) for step in range(4)]
        taken[overlap] = comm.bcast(median(times[1:]))
        trainer.close()
    apart, hidden = (units * LATENCY for units in EXPECTED[zero])
    assert taken[False] > 0.99 * apart and taken[True] > 0.99 * hidden, taken
    assert taken[False] - taken[True] > 0.7 * (apart - hidden), taken


def slow(function):
    def slowed(*arguments, **more):
        time.sleep(COMPUTE)
        return function(*arguments, **more)

    return slowed


def seconds(comm, trainer, step):
    comm.Barrier()
    start = time.perf_counter()
    trainer.step(step, *batch(MODEL, TRAIN, step))
    comm.Barrier()
    return time.perf_counter() - start
