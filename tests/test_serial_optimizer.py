"""The update rules and the initial values, by hand and at their edges."""

from math import isclose, pi, sqrt

import numpy as np
import pytest

from tparallel.config import ModelConfig, TrainConfig
from tparallel.serial.adamw import adamw_update, clip_factor, learning_rate
from tparallel.serial.parameters import count, decayed, initial, layer_names, shapes
from tparallel.serial.train import initial_params, train_step, zeros_like

MODEL = ModelConfig(L=2, D=8, H=2, T=5, V=11)


def batch():
    rng = np.random.default_rng(4)
    return rng.integers(0, MODEL.V, (4, MODEL.T)), rng.integers(0, MODEL.V, (4, MODEL.T))


def test_the_first_adamw_step_has_the_size_of_the_learning_rate():
    """With t = 1, m̂ = g and √v̂ = |g|: each entry moves by lr sign(g), after the decay of w."""
    c = TrainConfig(eps=0.0)
    w, g = np.array([2.0, -3.0, 0.5]), np.array([1e-3, -7.0, 20.0])
    m, v = np.zeros(3), np.zeros(3)
    adamw_update(w, g, m, v, step=0, lr=0.1, decay=0.5, c=c)
    assert np.allclose(w, np.array([2.0, -3.0, 0.5]) * (1 - 0.05) - 0.1 * np.sign(g), rtol=1e-12)
    assert np.allclose(m, (1 - c.beta1) * g) and np.allclose(v, (1 - c.beta2) * g * g)


def test_decay_is_for_matrices_alone():
    """Where every gradient is zero, w_* shrink by 1 - lr λ and biases and norms do not move."""
    c = TrainConfig(optimizer="sgd", lr=0.1, warmup=0, weight_decay=0.5, clip=1e-300, init="random")
    before, params = initial_params(MODEL, c), initial_params(MODEL, c)
    train_step(params, (), *batch(), 0, c)
    for layer, p in params.items():
        for name, w in p.items():
            matrix = name.rsplit(".", 1)[-1] in ("w_tok", "w_pos", "w_q", "w_kv", "w_out", "w_in")
            expected = before[layer][name] * (0.95 if matrix else 1.0)
            assert np.allclose(w, expected, rtol=1e-6, atol=0), f"{layer}.{name}"
            assert decayed(name) == matrix


def test_clipping_leaves_exactly_the_norm_that_was_asked_for():
    """A norm above ``clip`` comes down to it, one below is left alone, clip = 0 never clips."""
    c = TrainConfig(clip=0.5)
    assert clip_factor(2.0, c) * 2.0 == 0.5
    assert clip_factor(0.5, c) == clip_factor(0.1, c) == clip_factor(0.0, c) == 1.0
    assert clip_factor(1e9, TrainConfig(clip=0.0)) == 1.0


def test_the_learning_rate_warms_up_and_follows_half_a_cosine():
    """Up in equal steps to lr, half-way down at half of the rest, and min_lr · lr from the end."""
    c = TrainConfig(steps=30, lr=2.0, warmup=10, min_lr=0.1)
    rates = [learning_rate(k, c) for k in range(40)]
    assert np.allclose(rates[:10], 2.0 * np.arange(1, 11) / 10)
    assert rates[10] == 2.0
    assert isclose(rates[20], (2.0 + 0.2) / 2)
    assert isclose(rates[15], 0.2 + 1.8 * 0.5 * (1 + np.cos(pi / 4)))
    assert np.allclose(rates[30:], 0.2)
    assert learning_rate(0, TrainConfig(warmup=0, lr=2.0)) == 2.0


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_training_step_keeps_the_dtype(dtype, optimizer):
    """Parameters and moments stay what they were, and loss and norm are plain numbers."""
    c = TrainConfig(dtype=dtype, optimizer=optimizer, clip=0.01)
    params = initial_params(MODEL, c)
    moments = zeros_like(params), zeros_like(params)
    loss, norm = train_step(params, moments, *batch(), 0, c, microbatches=2)
    assert type(loss) is type(norm) is float
    kept = (params, *moments)
    assert {str(a.dtype) for t in kept for p in t.values() for a in p.values()} == {dtype}
    assert moments[1]["embed"]["w_pos"].any() == (optimizer == "adamw")


@pytest.mark.parametrize("style", ["gpt2", "random"])
def test_no_two_tensors_start_alike(style):
    """Two layers of equal shape get different values: not one row is found twice."""
    c = ModelConfig(L=4, D=6, H=2, T=6, V=6, F=6)
    params = initial_params(c, TrainConfig(dtype="float64", init=style))
    entries = [w.ravel() for p in params.values() for n, w in p.items() if decayed(n)]
    entries = np.concatenate(entries)
    assert (
        len(np.unique(entries))
        == len(entries)
        == count(c) - sum(w.size for p in params.values() for n, w in p.items() if not decayed(n))
    )


@pytest.mark.parametrize("style", ["gpt2", "random"])
def test_a_parameters_start_depends_on_its_name_and_the_seed_alone(style):
    """Another number of layers or another vocabulary elsewhere changes no value of this layer."""
    few, many = ModelConfig(L=2, D=8, H=2, V=11), ModelConfig(L=5, D=8, H=2, V=23, tied=True)
    for seed in (0, 1):
        a, b = (initial(c, "block.1", seed, "float64", style) for c in (few, many))
        for name in a:
            # GPT-2 divides what feeds the residual stream by √(2L): the one use of L.
            scaled = style == "gpt2" and name.endswith("w_out")
            ratio = sqrt(many.L / few.L) if scaled else 1.0
            assert np.allclose(a[name], b[name] * ratio, rtol=1e-14, atol=0), name
    first, second = (initial(few, "block.1", seed, "float64", style) for seed in (0, 1))
    assert all((first[n] != second[n]).all() for n in first if decayed(n))


def test_the_gpt2_start_has_the_published_sizes():
    """Matrices 0.02, residual ones / √(2L); biases 0, gains 1; float32 is the rounded float64."""
    c = ModelConfig(L=8, D=64, H=4, T=64, V=97)
    for layer in layer_names(c.L):
        for name, w in initial(c, layer, 3, "float64").items():
            last = name.rsplit(".", 1)[-1]
            if decayed(name):
                std = 0.02 / 4 if last == "w_out" else 0.02
                assert abs(w.std() / std - 1) < 0.05 and abs(w.mean()) < 0.05 * std, name
            else:
                assert (w == (1.0 if last == "g" else 0.0)).all(), name
            single = initial(c, layer, 3, "float32")[name]
            assert np.array_equal(single, w.astype(np.float32)), name


def test_the_count_of_parameters_is_what_is_stored():
    """Ψ counts a tied table once."""
    for tied in (False, True):
        c = ModelConfig(L=3, D=8, H=2, T=5, V=11, tied=tied)
        params = initial_params(c, TrainConfig())
        assert count(c) == sum(w.size for p in params.values() for w in p.values())
        assert list(params) == list(shapes(c))
    assert count(ModelConfig(V=11, D=8, H=2)) - count(ModelConfig(V=11, D=8, H=2, tied=True)) == 88
