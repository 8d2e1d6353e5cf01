"""Bytes that are really held: the walk over live arrays, and the look at a running step."""

import numpy as np
import pytest
from mpitest import mpi

from tparallel.compare.memory import Watch, nbytes


def test_views_of_one_buffer_count_once_and_count_all_of_it():
    """Whoever holds a column keeps the matrix alive."""
    a = np.zeros((10, 4))
    assert nbytes(a) == nbytes(a[:, 1]) == nbytes(a.T, a.reshape(2, 20)[0], [a, (a,)]) == 320


def test_arrays_are_found_in_nested_containers_and_the_rest_is_not_counted():
    """Dicts, lists, tuples; numbers, names, shapes and None weigh nothing."""
    tree = {"x": [np.zeros(3), (np.zeros(2, np.float32), None, 7, "name")], (0, 1): {}}
    assert nbytes(tree) == 24 + 8
    assert nbytes() == nbytes({}) == nbytes(None, 3.5) == 0


def test_equal_arrays_are_two_arrays():
    """What counts is where they lie, not what they say."""
    assert nbytes(np.zeros(4), np.zeros(4)) == 64


class Executor:
    """What a Watch looks at."""

    def __init__(self, caches):
        self.caches, self.wcaches = caches, {}


class Store:
    def __init__(self):
        self.params = {"block.0": np.zeros(8)}

    def room(self, bucket):
        return np.ones_like(self.params[bucket])


def test_the_peak_is_the_most_that_is_held_at_once():
    """Between two computations, caches of both halves together."""
    executor = Executor({})
    with Watch(Store()) as watch:
        for sizes in ([10], [10, 20], [5]):
            executor.caches = {m: [np.zeros(n)] for m, n in enumerate(sizes)}
            executor.wcaches = {0: np.zeros(len(sizes))}
            watch(executor)
    assert watch.activations_peak == 8 * (10 + 20 + 2)


def test_a_parameter_in_a_cache_is_an_error():
    """A stored one, and a view of one that was gathered for use: it would never be freed."""
    store = Store()
    with Watch(store) as watch, pytest.raises(RuntimeError, match="a cache holds a parameter"):
        watch(Executor({0: store.params["block.0"][2:3]}))
    with Watch(store) as watch, pytest.raises(RuntimeError, match="a cache holds a parameter"):
        watch(Executor({0: [store.room("block.0")[4:]]}))


def test_gathered_parameters_are_counted_while_they_live():
    """One layer at a time is 64 bytes; two that are kept at once are 128."""
    store = Store()
    with Watch(store) as watch:
        for _ in range(3):
            store.room("block.0")
        assert (watch.gathered_peak, watch.gathered) == (64, 0)
        one, two = store.room("block.0"), store.room("block.0")
        assert watch.gathered_peak == watch.gathered == 128
        del one, two
    assert store.room("block.0")[0] == 1 and watch.gathered_peak == 128


@mpi(2)
def test_between_two_computations_zero_3_keeps_no_gathered_layer(comm):
    """Forward and backward both let go of what they gathered, and caches hold none of it."""
    from tparallel.config import Layout, ModelConfig, TrainConfig
    from tparallel.train import Trainer

    model = ModelConfig(L=3, D=8, H=2, T=5, V=11)
    train, layout = TrainConfig(dtype="float64"), Layout(dp=2, zero=3, microbatches=2)
    trainer, alive = Trainer(model, train, layout, comm), []
    tokens, targets = np.random.default_rng(0).integers(0, 11, (2, 8, 5))
    with Watch(trainer.store) as watch:

        def look(executor):
            watch(executor)
            alive.append(watch.gathered)

        trainer.forward_backward(tokens, targets, look)
    assert alive == [0] * 4 and watch.gathered_peak > 0
    trainer.close()
