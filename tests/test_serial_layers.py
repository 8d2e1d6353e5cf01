"""Each layer alone: its gradients, its two halves, its dtype, and what it leaves untouched."""

import numpy as np
import pytest
from oracle.differences import directional_error, entries
from oracle.layers import KINDS, SIZES, WHOLE, make

from tparallel.compare.equality import relative_error, worst_error

each_layer = pytest.mark.parametrize("kind", KINDS)
each_size = pytest.mark.parametrize("size", SIZES)
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def output_gradient(y):
    """A random dy for y, in y's dtype."""
    dy = np.asarray(np.random.default_rng(9).normal(size=np.shape(y)))
    return dy.astype(y.dtype)[()]


def arrays(value):
    """Every array in nested tuples and dicts."""
    if isinstance(value, np.ndarray | np.generic):
        yield np.asarray(value)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from arrays(part)
    elif isinstance(value, dict):
        yield from arrays(list(value.values()))


def floats(value):
    return [a for a in arrays(value) if a.dtype.kind == "f"]


@each_size
@each_layer
def test_a_layers_gradients_are_the_slopes_of_its_output(kind, size):
    """d<y, dy>/dx and d<y, dy>/dp by finite differences: along directions and entry by entry."""
    layer = make(kind, size)
    y, cache = layer.forward(layer.x, layer.p)
    dy = output_gradient(y)
    dx, grads = layer.gradients(dy, cache)
    assert grads.keys() == layer.p.keys()
    if kind.endswith("embed"):  # tokens have no gradient
        assert dx is None

    def projected():
        return float((layer.forward(layer.x, layer.p)[0] * dy).sum())

    pairs = {name: (layer.p[name], g) for name, g in grads.items()}
    pairs |= {} if dx is None else {"x": (layer.x, dx)}
    for name, (w, dw) in pairs.items():
        if w.size <= 60:
            error, _ = worst_error({kind: {name: dw}}, {kind: {name: entries(projected, w)}})
        else:
            error = directional_error(projected, w, dw, np.random.default_rng(0))
        assert error < 1e-6, name


@each_size
@pytest.mark.parametrize("kind", WHOLE)
def test_backward_is_its_two_halves_bit_for_bit(kind, size):
    """x_backward(dy) = x_backward_input(dy), then x_backward_weight: the same bits."""
    layer = make(kind, size)
    y, cache = layer.forward(layer.x, layer.p)
    dy = output_gradient(y)
    dx, grads = layer.gradients(dy, cache)
    dx_both, grads_both = layer.backward(dy, cache, layer.p)
    assert dx is dx_both is None or np.array_equal(dx, dx_both)
    assert grads.keys() == grads_both.keys()
    assert all(np.array_equal(grads[name], grads_both[name]) for name in grads)


@each_layer
def test_the_weight_half_may_run_late_and_the_input_half_twice(kind):
    """A schedule keeps caches for as long as it likes: no half spoils what another one reads."""
    layer = make(kind, "odd")
    y, cache = layer.forward(layer.x, layer.p)
    dy = output_gradient(y)
    dx, wcache = layer.backward_input(dy, cache, layer.p)
    grads = layer.backward_weight(wcache)
    layer.forward(layer.x, layer.p)
    dx_again, wcache_again = layer.backward_input(dy, cache, layer.p)
    for late in (layer.backward_weight(wcache), layer.backward_weight(wcache_again)):
        assert all(np.array_equal(grads[name], late[name]) for name in grads)
    assert dx is dx_again is None or np.array_equal(dx, dx_again)


@each_layer
def test_a_layer_writes_into_nothing_that_it_was_given(kind):
    """x, dy and the parameters are another's: after forward and backward they are as before."""
    layer = make(kind, "odd")
    y, _ = layer.forward(layer.x, layer.p)
    dy = output_gradient(y)
    given = [np.copy(a) for a in arrays([layer.x, layer.p, dy])]
    _, cache = layer.forward(layer.x, layer.p)
    layer.gradients(dy, cache)
    assert all(np.array_equal(a, b) for a, b in zip(given, arrays([layer.x, layer.p, dy])))


@each_layer
def test_a_cache_holds_activations_and_never_parameters(kind):
    """Else a method that frees parameters after use (ZeRO-3) would free nothing."""
    layer = make(kind, "odd")
    y, cache = layer.forward(layer.x, layer.p)
    _, wcache = layer.backward_input(output_gradient(y), cache, layer.p)
    for kept in arrays([cache, wcache]):
        for name, a in layer.p.items():
            assert not np.shares_memory(kept, a), name


@each_dtype
@each_size
@each_layer
def test_a_layer_returns_the_dtype_that_it_was_given(kind, size, dtype):
    """float32 in, float32 out, float64 likewise: output, both caches and every gradient."""
    layer = make(kind, size, dtype)
    y, cache = layer.forward(layer.x, layer.p)
    dx, wcache = layer.backward_input(output_gradient(y), cache, layer.p)
    grads = layer.backward_weight(wcache)
    found = {str(a.dtype) for a in floats([y, cache, dx, wcache, grads])}
    assert found == {dtype}


@each_layer
def test_float32_agrees_with_float64_to_its_own_precision(kind):
    """A float32 layer computes the same function: 2e-6, some thirty of its roundings."""
    results = []
    for dtype in ("float32", "float64"):
        layer = make(kind, "short", dtype)
        y, cache = layer.forward(layer.x, layer.p)
        results.append([y, *layer.gradients(output_gradient(y), cache)])
    for single, double in zip(arrays(results[0]), arrays(results[1])):
        assert relative_error(single, double) < 2e-6
