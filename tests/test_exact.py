"""Layout-invariant bits: with exact sums, ten steps on any layout end in the same bits."""

import numpy as np
import pytest
from mpitest import mpi

from tparallel.config.presets import LLAMA
from tparallel.errors import ConfigError
from tparallel.train import Trainer
from tparallel.verify.cases import FIXED, configs
from tparallel.verify.exact import Gradient, Value, make_exact
from tparallel.verify.pool import Pool
from tparallel.verify.reference import batches

PLAIN = {"TPARALLEL_KERNELS": "plain"}  # whose order of sums is the text's
MODEL = {"L": 4, "D": 32, "H": 8, "F": 48, "T": 8, "V": 259, "global_batch": 8}
LAYOUTS = [
    {"microbatches": 4},
    *({"tp": n} for n in (2, 4)),
    *({"dp": 4, "zero": stage} for stage in range(4)),
    {"dp": 2, "zero": 2, "microbatches": 2},
    {"dp": 4, "zero": 1, "shard_group": 2, "bucket_bytes": 60_000},
    *({"pp": 2, "schedule": s, "microbatches": 4} for s in ("gpipe", "1f1b", "zb-v", "naive")),
    {"pp": 2, "schedule": "interleaved", "microbatches": 4},
    {"pp": 4, "microbatches": 4, "recompute": "full"},
    {"tp": 2, "dp": 2, "zero": 3},
    {"tp": 2, "pp": 2, "microbatches": 2},
]


def _train(comm, settings, exact):
    """Every step's loss and norm, and the parameters after the last (on rank 0)."""
    case = configs(FIXED | MODEL | settings)
    trainer = Trainer(case.model, case.train, case.layout, comm)
    if exact:
        make_exact(trainer)
    rows = batches(case.model, case.train)
    said = [trainer.step(step, *rows[step]) for step in range(case.train.steps)]
    params = trainer.params()
    trainer.close()
    return said, params


def _same_bits(one, other):
    return one[0] == other[0] and all(
        np.array_equal(a, other[1][layer][name])
        for layer, p in one[1].items()
        for name, a in p.items()
    )


@mpi(4, timeout=240, env=PLAIN)
@pytest.mark.parametrize(
    "model",
    [
        pytest.param({"tied": False}, marks=pytest.mark.slow, id="untied"),
        {"tied": True},
        pytest.param(LLAMA | {"Hkv": 4}, marks=pytest.mark.slow, id="llama"),
    ],
)
def test_ten_steps_have_the_same_bits_on_every_layout(comm, model):
    """Loss and norm of each step, and all parameters, under AdamW with clipping active."""
    common = {**model, "steps": 10, "clip": 0.5, "optimizer": "adamw"}
    with Pool(comm) as pool:
        if not pool.leads:
            return
        serial = pool.run(1, _train, common, True)
        assert all(norm > 0.5 for _, norm in serial[0])
        for layout in LAYOUTS:
            ranks = configs(FIXED | MODEL | layout).layout.ranks
            assert _same_bits(pool.run(ranks, _train, common | layout, True), serial), layout


@mpi(2, timeout=60, env=PLAIN)
def test_without_exact_sums_tensor_parallelism_has_other_bits(comm):
    """The control: the mode does something, and what it computes is the same training."""
    with Pool(comm) as pool:
        if not pool.leads:
            return
        settings = {"steps": 3, "clip": 0.5}
        serial = pool.run(1, _train, settings, False)
        cut = pool.run(2, _train, {"tp": 2, **settings}, False)
        assert not _same_bits(cut, serial)
        exact = pool.run(1, _train, settings, True)
        for (a, _), (b, _) in zip(exact[0], serial[0]):
            assert 0 < abs(a - b) < 1e-4 * b


def test_products_and_sums_are_exact_in_any_order():
    """Of a product in pieces, and of a sum backwards: not one bit differs."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(7, 259)), rng.normal(size=(259, 5))
    whole = x.view(Value) @ w.view(Value)
    pieces = [x[:, s].copy().view(Value) @ w[s].view(Value) for s in (slice(97), slice(97, 259))]
    assert np.array_equal(whole, pieces[1] + pieces[0])
    assert not np.array_equal(x @ w, x[:, :97].copy() @ w[:97] + x[:, 97:].copy() @ w[97:])
    g = (1e-3 * rng.normal(size=1000)).view(Gradient)
    assert float(g.sum()) == float(g[::-1].sum()) == float(g[:300].sum() + g[300:].sum())


@mpi(2, env=PLAIN)
def test_what_cannot_be_exact_is_refused(comm):
    """Sequence parallelism, float32, a batch whose size is no power of two."""
    for settings, rule in (
        ({"tp": 2, "sp": "keep"}, "sequence parallelism"),
        ({"tp": 2, "dtype": "float32"}, "float64"),
        ({"tp": 2, "T": 6}, "power of two"),
    ):
        case = configs(FIXED | MODEL | settings)
        trainer = Trainer(case.model, case.train, case.layout, comm)
        with pytest.raises(ConfigError, match=rule):
            make_exact(trainer)
        trainer.close()
