"""Two-dimensional tensor parallelism: the product and its gradients, and its bytes beside 1-D."""

import numpy as np
import pytest
from groups import axes
from mpitest import mpi

from tparallel.compare.equality import relative_error
from tparallel.errors import LayoutError
from tparallel.serial import linear
from tparallel.tensor_parallel import summa


def matrices(R=12, D=24, F=36):
    rng = np.random.default_rng(0)
    return rng.normal(size=(R, D)), rng.normal(size=(D, F)), rng.normal(size=(R, F))


def on_grid(axis):
    """Blocks of y, dx and dW, and the grid."""
    grid = summa.make_grid(axis)
    x, w, dy = (summa.block_of(a, grid) for a in matrices())
    y = summa.linear_forward(x, w, grid)
    dx = summa.linear_backward_input(dy, w, grid)
    return grid, (y, dx, summa.linear_backward_weight(x, dy, grid))


@mpi(1, 4, 9)
def test_every_block_of_the_three_products_is_serials(comm):
    """q = 1, 2 and 3: y, dx and dW."""
    for axis in axes(comm, comm.size):
        grid, ours = on_grid(axis)
        x, w, dy = matrices()
        whole = (
            linear.linear_forward(x, w),
            linear.linear_backward_input(dy, w),
            linear.linear_backward_weight(x, dy),
        )
        for mine, a in zip(ours, whole):
            assert relative_error(mine, summa.block_of(a, grid)) <= 1e-12


@mpi(4, 9)
def test_each_rank_sends_its_closed_form(comm):
    """(q − 1)(|x| + |W|) elements of blocks for each of the three products."""
    for axis in axes(comm, comm.size):
        grid, _ = on_grid(axis)
        q = grid.row.size
        x, w, _ = (summa.block_of(a, grid) for a in matrices())
        assert axis.ledger.wire("tp") == 3 * (q - 1) * (x.nbytes + w.nbytes)


@mpi(4)
def test_beside_one_dimension_it_sends_less_for_many_tokens_and_holds_less(comm):
    """A layer cut one way sums R D once, forward or backward: 2 (n−1)/n R D per rank, and holds x
    whole.  Two-dimensional: 3 (q−1)/q² (R D + D F), and 1/n of x.  It wins where
    R > D F 3 (q−1) / (2 (n−1) D − 3 (q−1) D), at n = 4: more tokens than columns."""
    D, F = 24, 36
    for axis in axes(comm, 4):
        for R, sign in ((24, 1), (36, 0), (144, -1)):
            x, w, dy = matrices(R, D, F)
            axis.ledger.clear()
            axis.all_reduce(x, what="1-D dx")
            one_way = axis.ledger.wire("tp")
            assert one_way == 2 * 3 * x.nbytes // 4
            axis.ledger.clear()
            grid = summa.make_grid(axis)
            x, w, dy = (summa.block_of(a, grid) for a in (x, w, dy))
            summa.linear_forward(x, w, grid)
            summa.linear_backward_input(dy, w, grid)
            summa.linear_backward_weight(x, dy, grid)
            two_way = axis.ledger.wire("tp")
            assert np.sign(two_way - one_way) == sign, R
            assert x.nbytes == R * D * 8 // 4


@mpi(2)
def test_a_number_of_ranks_that_is_no_square_is_refused(comm):
    """With the nearest squares."""
    for axis in axes(comm, 2):
        with pytest.raises(LayoutError, match=r"q × q ranks: this axis has 2. Use 1 or 4"):
            summa.make_grid(axis)


@mpi(4)
def test_sides_that_the_grid_does_not_divide_are_refused(comm):
    """Before the first message."""
    for axis in axes(comm, 4):
        with pytest.raises(LayoutError, match=r"both sides of a matrix: \(3, 4\), q = 2"):
            summa.block_of(np.zeros((3, 4)), summa.make_grid(axis))
