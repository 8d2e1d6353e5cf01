"""A weight's gradient is computed where it is kept, and only where that is safe."""

import numpy as np
import pytest

from tparallel.kernels.table import Rows
from tparallel.places import offered, place
from tparallel.serial.linear import linear_backward_weight
from tparallel.zero.precision import add_into, write_into


def draw(*shape):
    return np.random.default_rng([*shape]).normal(size=shape)


def test_a_gradient_is_written_into_the_offered_array_of_its_shape():
    """The same bits as in a new array, and the store finds nothing left to copy."""
    x, dy, flat = draw(2, 5, 3), draw(2, 5, 4, 2), np.full(40, np.nan)
    view = flat[8:32].reshape(3, 4, 2)
    with offered([view, flat[:8]]):
        dw = linear_backward_weight(x, dy)
    assert np.shares_memory(dw, flat)
    assert np.array_equal(view, linear_backward_weight(x, dy))
    write_into(view, dw)
    assert np.isnan(flat[:8]).all() and np.isnan(flat[32:]).all()


@pytest.mark.parametrize("other", [(3, 5), (2, 3, 4)])
def test_another_shape_another_type_or_a_second_asking_gets_a_new_array(other):
    """What is offered is written once, by what has exactly its shape."""
    with offered([draw(3, 4)]):
        assert place(other[:1], other[1:], np.dtype("f8")) is None
        assert place((3,), (4,), np.dtype("f4")) is None
        assert place((3,), (4,), np.dtype("f8")) is not None
        assert place((3,), (4,), np.dtype("f8")) is None


def test_of_two_places_of_one_shape_neither_is_offered():
    """Nobody could tell which parameter's it is; and nothing is offered when it is over."""
    with offered([draw(3, 4), draw(5), draw(3, 4), draw(3, 4)]):
        assert place((3,), (4,), np.dtype("f8")) is None
        assert place((5,), (), np.dtype("f8")) is not None
    with offered([draw(5)]):
        pass
    assert place((5,), (), np.dtype("f8")) is None


def test_a_gradient_that_was_computed_elsewhere_is_copied():
    """An array, or the few rows of a table, over whatever lay there before."""
    for x in (draw(6, 2), Rows((6, 2), np.array([4, 1]), draw(2, 2))):
        kept = np.full((6, 2), np.nan)
        write_into(kept, x)
        assert np.array_equal(kept, np.asarray(x)) and np.count_nonzero(kept) in (4, 12)


def test_rows_of_a_table_are_added_to_what_is_there():
    """A tied table: the head's gradient first, then that of the tokens that were looked up."""
    there, rows = draw(6, 2), Rows((6, 2), np.array([4, 1]), draw(2, 2))
    kept = there.copy()
    add_into(kept, rows)
    assert np.array_equal(kept, there + np.asarray(rows)) and not np.array_equal(kept, there)
    assert np.array_equal(np.asarray(rows)[[4, 1]], rows.rows)
