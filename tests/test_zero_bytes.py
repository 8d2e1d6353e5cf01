"""Every way in which ZeRO can move its shards: bytes as predicted, and trained as serial trains."""

import pytest
from layout_cases import MODEL, TRAIN, assert_equal, batch, errors
from mpitest import mpi

from tparallel import predict
from tparallel.compare.measure import measure
from tparallel.config import Layout, replace
from tparallel.predict.zero_wire import vectors
from tparallel.train import Trainer

TIED = replace(MODEL, tied=True)
TEN = replace(TRAIN, steps=10, clip=0.5, weight_decay=0.2, global_batch=16)
WAYS = {
    "one message per layer, at once": {"overlap": False},
    "buckets of two layers": {"bucket_bytes": 2 * 8 * 1100},
    "one bucket": {"bucket_bytes": 10**9},
    "gradients added up locally": {"reduce_each": "step"},
    "in groups of two": {"shard_group": 2},
    "in groups, buckets, added up locally": {
        "shard_group": 2,
        "bucket_bytes": 10**9,
        "reduce_each": "step",
    },
    "offloaded": {"offload": True},
    "blocks computed again in backward": {"recompute": "full"},  # with the same gathered layer
}
ALONE = (  # slow: by default they are tested together with others, or by test_verify
    "one message per layer, at once",
    "one bucket",
    "gradients added up locally",
    "in groups of two",
    "offloaded",
    "blocks computed again in backward",
)


@mpi(4, timeout=120)
@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=[pytest.mark.slow] * (way in ALONE)) for way in WAYS]
)
def test_ten_steps_of_every_stage_are_serials_ten_steps(comm, way):
    """Loss, norm before clipping, gradients, parameters *and* moments, under SGD (which hides no
    scale error) and AdamW, clipping and decay active, with accumulation, a tied table."""
    for optimizer in ("sgd", "adamw"):
        train = replace(TEN, optimizer=optimizer)
        for zero in (0, 1, 2, 3):
            if zero == 0 and "shard_group" in WAYS[way]:
                continue
            layout = Layout(dp=4, zero=zero, microbatches=2, **WAYS[way])
            assert_equal(errors(TIED, train, layout, comm), optimizer, layout.name)


@mpi(4, timeout=60)
def test_the_ways_compose_with_the_other_axes(comm):
    """Groups of dp beside tp and pp; buckets over the layers of a stage."""
    train = replace(TRAIN, steps=3, optimizer="sgd")
    for text in (
        "tp=2,dp=2,zero=3,microbatches=2,bucket_bytes=20000",
        "pp=2,dp=2,zero=3,microbatches=4,bucket_bytes=20000",
        "pp=2,dp=2,zero=2,microbatches=4,reduce_each=step",
        "pp=2,dp=2,zero=1,microbatches=2,shard_group=2,offload=1",
    ):
        assert_equal(errors(TIED, train, Layout.parse(text), comm), "sgd", text)


PREDICTED = [
    *WAYS.values(),
    {"shard_group": 2, "secondary": True},
    {"quantise": "weights"},
    {"quantise": "grads"},
    {"shard_group": 2, "quantise": "both"},
    {"shard_group": 2, "secondary": True, "quantise": "both"},
]


@mpi(4, timeout=120)
@pytest.mark.parametrize(
    "dtype, tied", [pytest.param("float64", False, marks=pytest.mark.slow), ("bfloat16", True)]
)
def test_every_way_holds_and_sends_what_its_closed_form_says(comm, dtype, tied):
    """Per rank, axis and kind, to the byte, with one and with three micro-batches; bytes in half
    precision are half of them."""
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    train = replace(TRAIN, steps=2, global_batch=12, dtype=dtype)
    model = replace(MODEL, tied=tied)
    for way in PREDICTED:
        for zero in (0, 1, 2, 3):
            plain = not {"secondary", "quantise"} & {*way}
            if (zero == 0 and "shard_group" in way) or (zero < 3 and not plain):
                continue
            for M in (1, 3):
                layout = Layout(dp=4, zero=zero, microbatches=M, **way)
                ranks = measure(model, train, layout, comm, lambda k: batch(model, train, k))
                if ranks:
                    held = predict.held(model, train, layout)
                    sent = predict.wire(model, train, layout)
                    assert {k: [own.held[k] for own in ranks] for k in held} == held, layout.name
                    assert {a: [own.wire[a] for own in ranks] for a in sent} == sent, layout.name


@pytest.mark.parametrize(
    "zero, each, want",
    [
        (0, "microbatch", (2, 2)),
        (1, "microbatch", (2, 2)),
        (2, "microbatch", (2, 5)),
        (2, "step", (2, 2)),
        (3, "microbatch", (3, 12)),
        (3, "step", (3, 9)),
    ],
)
def test_the_vectors_of_a_step_with_one_and_with_four_micro_batches(zero, each, want):
    """2; M + 1, or 2 where gradients are added up locally; 3 M, or 2 M + 1."""
    assert (vectors(zero, 1, each), vectors(zero, 4, each)) == want


@mpi(2)
def test_gradients_added_up_locally_give_stage_0s_bits_at_any_number_of_micro_batches(comm):
    """The same sums in the same order: micro-batches first, then ranks."""
    runs = []
    for zero, each in ((0, "microbatch"), (1, "microbatch"), (2, "step"), (3, "step")):
        layout = Layout(dp=2, zero=zero, microbatches=4, reduce_each=each)
        trainer = Trainer(MODEL, TRAIN, layout, comm)
        said = [trainer.step(k, *batch(MODEL, TRAIN, k)) for k in range(TRAIN.steps)]
        runs.append((said, trainer.params()))
        trainer.close()
    for said, params in runs[1:]:
        assert said == runs[0][0]
        if params:
            for layer, p in params.items():
                assert all(p[name].tobytes() == runs[0][1][layer][name].tobytes() for name in p)
