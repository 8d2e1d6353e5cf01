"""y = x W on a grid of q × q ranks: both matrices are cut both ways, and no rank holds a whole one.

Rank (i, j) holds block (i, j) of x, W, y and of their gradients.  A product takes q rounds; in
round k column k of x is broadcast along the rows of the grid and row k of W along its columns.
The two products of backward have one factor transposed: there one factor is broadcast, and the
products are summed to where their block lives.

    y_ij  = Σ_k x_ik W_kj      dx_ik = Σ_j dy_ij W_kjᵀ      dW_kj = Σ_i x_ikᵀ dy_ij

Shapes:        x, dx (R/q, I/q); W, dW (I/q, O/q); y, dy (R/q, O/q)
Communicates:  of blocks with |x| and |W| elements, each rank sends (q − 1)(|x| + |W|) for each of
               the three products.  A linear layer cut one way over n = q² ranks sums R D elements
               once: 2 (n − 1)/n R D per rank, but holds x or y whole
Source:        van de Geijn and Watts 1997, section 3; for transformers: Xu et al. 2021 (Optimus)
"""

from typing import NamedTuple

from ..backend import xp
from ..comm.axis import Axis
from ..errors import LayoutError


class Grid(NamedTuple):
    """``row`` joins the ranks (i, 0 ... q−1), ``column`` the ranks (0 ... q−1, j)."""

    row: Axis
    column: Axis


def make_grid(axis: Axis) -> Grid:
    """An axis of q² ranks as a grid, row by row."""
    q = round(axis.size**0.5)
    if q * q != axis.size:
        raise LayoutError(
            f"a grid needs q × q ranks: this axis has {axis.size}. Use {q * q} or {(q + 1) ** 2}."
        )
    i, j = divmod(axis.rank, q)
    return Grid(axis.split(color=i), axis.split(color=j))


def block_of(a, grid: Grid):
    """This rank's block of a whole matrix: a copy."""
    q = grid.row.size
    if a.shape[0] % q or a.shape[1] % q:
        raise LayoutError(f"q must divide both sides of a matrix: {a.shape}, q = {q}.")
    rows, columns = a.shape[0] // q, a.shape[1] // q
    i, j = grid.column.rank * rows, grid.row.rank * columns
    return a[i : i + rows, j : j + columns].copy()


def linear_forward(x, w, grid: Grid):
    y = xp.zeros((x.shape[0], w.shape[1]), x.dtype)
    for k in range(grid.row.size):
        x_k = _from(grid.row, k, x, what="summa.x")  # x_ik
        w_k = _from(grid.column, k, w, what="summa.w")  # W_kj
        y += x_k @ w_k
    return y


def linear_backward_input(dy, w, grid: Grid):
    dx = None
    for k in range(grid.row.size):
        w_k = _from(grid.column, k, w, what="summa.w")  # W_kj
        mine = grid.row.reduce(dy @ w_k.T, root=k, what="summa.dx")  # partial over the row
        dx = mine if grid.row.rank == k else dx
    return dx


def linear_backward_weight(x, dy, grid: Grid):
    dw = None
    for k in range(grid.row.size):
        x_k = _from(grid.row, k, x, what="summa.x")  # x_ik
        mine = grid.column.reduce(x_k.T @ dy, root=k, what="summa.dw")  # partial over the column
        dw = mine if grid.column.rank == k else dw
    return dw


def _from(axis: Axis, root: int, block, *, what: str):
    """Rank ``root``'s block, on every rank of the axis."""
    return axis.broadcast(
        block if axis.rank == root else xp.empty_like(block), root=root, what=what
    )
