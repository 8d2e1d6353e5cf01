"""The measure that every other comparison uses: it must find what it is meant to find."""

import numpy as np
import pytest

from tparallel.compare.equality import relative_error, worst_error


def tree(rng):
    return {
        "embed": {"w_tok": rng.normal(size=(5, 4))},
        "block.1": {
            "attn.b_kv": rng.normal(size=(2, 2, 2)),
            "attn.w_out": 1e-3 * rng.normal(size=(2, 2, 4)),
        },
    }


def copied(t):
    return {layer: {name: a.copy() for name, a in p.items()} for layer, p in t.items()}


def test_the_error_is_the_largest_difference_over_the_largest_reference():
    """max|a − b| / max|b|, by hand; the second argument is the reference."""
    assert relative_error([1.0, 4.5], [1.0, 4.0]) == 0.5 / 4.0
    assert relative_error([1.0, 4.0], [1.0, 4.5]) == 0.5 / 4.5
    assert relative_error(2.5, 2.0) == 0.25


def test_equal_arrays_have_error_zero_even_if_all_zero_or_empty():
    """A gradient that is exactly zero on both sides is right, and so is a shard of size 0."""
    assert relative_error(np.zeros(3), np.zeros(3)) == 0.0
    assert relative_error(np.zeros((0, 4)), np.zeros((0, 4))) == 0.0


def test_anything_where_the_reference_is_zero_is_an_infinite_error():
    """No scale excuses a difference from an all-zero tensor."""
    assert relative_error(np.full(3, 1e-300), np.zeros(3)) == np.inf


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("both", [False, True])
def test_a_value_that_is_not_finite_is_an_infinite_error(bad, both):
    """Every comparison with NaN is false: left alone, a broken run would pass."""
    good = np.ones(4)
    broken = np.array([1, 1, bad, 1])
    assert relative_error(broken, broken if both else good) == np.inf
    assert relative_error(broken if both else good, broken) == np.inf


def test_float32_is_compared_in_float64():
    """The last bit of float32 is seen at its own size, not rounded away."""
    one = np.float32(1)
    up = np.nextafter(one, np.float32(2))
    assert relative_error(np.array([up]), np.array([1.0])) == 2.0**-23


def test_shapes_must_agree():
    """Broadcasting would compare a vector with each row of a matrix and call them equal."""
    with pytest.raises(ValueError, match=r"one shape.*\(3,\) and \(1, 3\)"):
        relative_error(np.ones(3), np.ones((1, 3)))


def test_the_worst_tensor_is_named_whatever_its_size():
    """A wrong entry in a tensor a thousand times smaller than the others is found."""
    reference = tree(np.random.default_rng(0))
    ours = copied(reference)
    assert worst_error(ours, reference)[0] == 0.0
    w = ours["block.1"]["attn.w_out"]
    w[1, 0, 3] += 0.01 * np.abs(w).max()
    error, name = worst_error(ours, reference)
    assert name == "block.1.attn.w_out"
    assert error == pytest.approx(0.01)


@pytest.mark.parametrize("part", "kv")
def test_only_the_key_bias_is_measured_against_the_whole_model(part):
    """Noise of 1e-14 passes where the true gradient is zero, and nowhere else in b_kv."""
    reference = tree(np.random.default_rng(1))
    bias = reference["block.1"]["attn.b_kv"]
    bias *= 1e-12
    bias[1] = 0.0
    ours = copied(reference)
    ours["block.1"]["attn.b_kv"]["kv".index(part)] += 1e-14
    error, name = worst_error(ours, reference)
    assert name == f"block.1.attn.b_kv[{part}]"
    assert (error < 1e-13) == (part == "k")


def test_a_key_bias_that_is_really_wrong_is_still_found():
    """The larger scale is no licence: an error of the model's own size shows."""
    reference = tree(np.random.default_rng(2))
    ours = copied(reference)
    ours["block.1"]["attn.b_kv"][0, 0, 1] += 0.5
    error, name = worst_error(ours, reference)
    assert name == "block.1.attn.b_kv[k]"
    assert error > 0.1


def test_nan_in_any_tensor_of_either_tree_is_the_worst_error():
    """One NaN in the largest tensor of the reference makes every scale useless: still infinite."""
    reference = tree(np.random.default_rng(3))
    for layer, name in (("embed", "w_tok"), ("block.1", "attn.b_kv"), ("block.1", "attn.w_out")):
        broken = copied(reference)
        broken[layer][name].flat[0] = np.nan
        assert worst_error(broken, reference)[0] == np.inf
        assert worst_error(reference, broken)[0] == np.inf


def test_trees_must_hold_the_same_tensors():
    """A gradient that nobody computed, or a layer too many, is refused by name."""
    reference = tree(np.random.default_rng(4))
    ours = copied(reference)
    del ours["block.1"]["attn.w_out"]
    with pytest.raises(ValueError, match=r"only one holds block\.1\.attn\.w_out"):
        worst_error(ours, reference)
    with pytest.raises(ValueError, match=r"only one holds block\.1\.attn\.w_out"):
        worst_error(reference, ours)
