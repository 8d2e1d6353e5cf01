"""Dropout that no layout changes: what is dropped depends on what it is, not on who computes it."""

import numpy as np
import pytest
from layout_cases import MODEL, TRAIN, assert_equal, batch, errors
from mpitest import mpi

from tparallel.config import Layout, ModelConfig, TrainConfig, replace
from tparallel.errors import ConfigError
from tparallel.serial.context import Context
from tparallel.serial.dropout import NONE, Dropout, fold, mix
from tparallel.serial.train import initial_params, loss_and_grads

DROP = Dropout(0.3).of(7, 2).of("block.1")
EIGHT = replace(MODEL, T=8)
DROPPING = replace(TRAIN, dropout=0.2)


def test_the_hash_is_splitmix64():
    """Vigna's reference output for the seed 1234567: the first three numbers of the sequence."""
    found = [mix((1234567 + k * 0x9E3779B97F4A7C15) % 2**64) for k in (1, 2, 3)]
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert np.array_equal(
        mix(np.arange(5, dtype=np.uint64)), np.array([mix(k) for k in range(5)], np.uint64)
    )


def test_a_part_drops_what_the_whole_drops_there():
    """Any rows, positions and heads of an array, computed alone."""
    x, a = np.ones((4, 6, 5)), np.ones((4, 6, 1, 3, 3))
    whole, whole_a = DROP.hidden(x, "mlp.y"), DROP.heads(a, "attn.a")
    part = DROP.from_row(1)._replace(t=2, head=3)
    assert np.array_equal(part.hidden(x[1:3, 2:5], "mlp.y"), whole[1:3, 2:5])
    assert np.array_equal(part.heads(a[1:3, 3:5], "attn.a"), whole_a[1:3, 3:5])
    grouped = DROP.heads(np.ones((4, 2, 3, 3, 3)), "attn.a")  # 2 key/value heads of 3 queries each
    assert np.array_equal(grouped.reshape(4, 6, 3, 3), whole_a[:, :, 0])


def test_step_seed_layer_site_and_position_each_change_what_is_dropped():
    """Two masks of rate 1/2 that have nothing to do with each other agree in half of the places."""
    x = np.ones((8, 64, 64))
    base = Dropout(0.5).of(0, 0)

    def mask(drop, site="attn.y"):
        return drop.hidden(x, site) > 0

    one = mask(base.of("block.0"))
    others = [
        mask(Dropout(0.5).of(1, 0).of("block.0")),
        mask(Dropout(0.5).of(0, 1).of("block.0")),
        mask(base.of("block.1")),
        mask(base.of("block.0"), "mlp.y"),
        mask(base.of("block.0").from_row(8)),
        mask(base.of("block.0")._replace(t=64)),
        np.roll(one, 1, 0),
        np.roll(one, 1, 1),
        np.roll(one, 1, 2),
    ]
    for other in others:
        assert abs((one == other).mean() - 0.5) < 5 * 0.5 / np.sqrt(x.size)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_share_of_rate_is_dropped_and_the_rest_makes_up_for_it(rate, dtype):
    """y is 0 or x/(1−rate), in x's dtype; the mean stays."""
    x = np.full((16, 64, 64), 3.0, dtype)
    y = Dropout(rate).of(3).hidden(x, "s")
    assert y.dtype == dtype
    assert np.allclose(np.unique(y), [0, 3 / (1 - rate)], rtol=1e-6)
    assert abs((y == 0).mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / x.size)


def test_without_dropout_nothing_is_touched():
    """The very array comes back; keys cost nothing."""
    x = np.ones((2, 3, 4))
    assert NONE.hidden(x, "s") is x
    assert NONE.of(3, "block.0") is NONE
    a = np.ones((2, 2, 1, 3, 3))
    assert NONE.heads(a, "s") is a or np.shares_memory(NONE.heads(a, "s"), a)


@pytest.mark.parametrize("tied", [False, True])
def test_gradients_with_dropout_are_slopes_of_the_loss_with_the_same_dropout(tied):
    """Central differences along a random direction of every tensor: all sites, forward and back."""
    model = ModelConfig(L=2, D=8, H=4, Hkv=2, T=5, V=7, F=6, tied=tied)
    params = initial_params(model, TrainConfig(dtype="float64", init="random"))
    rng, here = np.random.default_rng(1), Context(Dropout(0.25).of(3, 1))
    tokens, targets = rng.integers(0, 7, (2, 4, 5))
    _, grads = loss_and_grads(params, tokens, targets, 2, here)
    for layer, p in params.items():
        for name, w in p.items():
            v, keep, at = rng.normal(size=w.shape), w.copy(), []
            for sign in (1, -1):
                w[...] = keep + sign * 1e-6 * v
                at.append(loss_and_grads(params, tokens, targets, 1, here)[0])
            w[...] = keep
            slope = (at[0] - at[1]) / 2e-6
            assert abs(slope - (v * grads[layer][name]).sum()) < 1e-7, (layer, name)


def test_every_site_of_gpt2_drops(monkeypatch):
    """Embedding, attention's probabilities, attention's output, the mlp's output; in each layer."""
    seen = set()
    real = Dropout._apply

    def watch(self, x, site, *rest):
        y = real(self, x, site, *rest)
        if self.rate and not np.array_equal(x, y):
            seen.add((self.key, site))
        return y

    monkeypatch.setattr(Dropout, "_apply", watch)
    params = initial_params(EIGHT, DROPPING)
    drop = Dropout(0.2).of(0, 0)
    loss_and_grads(params, *batch(EIGHT, DROPPING), 1, Context(drop))
    blocks = [drop.of(f"block.{i}").key for i in range(EIGHT.L)]
    want = {(drop.of("embed").key, "embed.x")}
    want |= {(key, site) for key in blocks for site in ("attn.a", "attn.y", "mlp.y")}
    assert seen == want and len(want) == 1 + 3 * EIGHT.L


@mpi(4, timeout=90)
def test_no_layout_changes_what_is_dropped(comm):
    """Loss, gradients and parameters after three steps, with dropout on, are serial's: tensor and
    sequence parallel, pipelines, ZeRO, recomputation, and products of them."""
    for layout in (
        Layout(tp=4),
        Layout(tp=4, sp="keep"),
        Layout(pp=4, microbatches=4),
        Layout(dp=4, zero=2, microbatches=2),
        Layout(tp=2, pp=2, sp="regather", recompute="full", microbatches=2),
        Layout(tp=2, dp=2, zero=3, sp="keep", recompute="selective", microbatches=4),
        Layout(pp=2, dp=2, schedule="zb-h1", zero=1, microbatches=4),
    ):
        assert_equal(errors(EIGHT, DROPPING, layout, comm), "adamw", layout.name)


@mpi(1)
def test_evaluation_drops_nothing(comm):
    """The held-out loss is that of a run without dropout from the same parameters."""
    from tparallel.train import Trainer

    losses = []
    for train in (TRAIN, DROPPING):
        trainer = Trainer(EIGHT, train, Layout(), comm)
        losses.append(trainer.evaluate(*batch(EIGHT, train)))
        trainer.close()
    assert losses[0] == losses[1]


def test_keys_of_different_parts_differ():
    """Names and numbers, in order: no two of some thousand keys are equal."""
    keys = [fold(s, k, f"block.{i}") for s in range(8) for k in range(16) for i in range(16)]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_an_impossible_rate_is_refused(rate):
    with pytest.raises(ConfigError, match=r"dropout must lie in \[0, 1\)"):
        TrainConfig(dropout=rate)
