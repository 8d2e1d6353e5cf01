"""Products of many pairs of bfloat16 matrices at once, with results in float32.

``a @ b`` of CuPy 14 does not take bfloat16 with more than two dims; cuBLAS does, and CuPy hands it
on.  Tensor cores multiply the halves exactly and add in float32.

cuBLAS takes matrices that lie column by column: ours, row by row, are their transposes there, so
that it is asked for Cᵀ = Bᵀ Aᵀ.
"""

import numpy as np

from ..backend import xp

ONE, ZERO = np.ones((), np.float32), np.zeros((), np.float32)  # read by cuBLAS on the host
TENSORS = xp.cuda.runtime.CUDA_R_16BF, xp.cuda.runtime.CUDA_R_32F


def product(a, b):
    """a b of (..., m, k) and (..., k, n); dims before the last two are broadcast."""
    if a.dtype.name != "bfloat16":
        return a @ b
    *batch, m, k = np.broadcast_shapes(a.shape[:-1], (*b.shape[:-2], 1)) + a.shape[-1:]
    n = b.shape[-1]
    (a, how_a, step_a, next_a), (b, how_b, step_b, next_b) = (
        _lies(xp.broadcast_to(x, (*batch, *x.shape[-2:]))) for x in (a, b)
    )
    c = xp.empty((*batch, m, n), xp.float32)
    half, wide = TENSORS
    cublas = xp.cuda.cublas
    cublas.gemmStridedBatchedEx(
        xp.cuda.Device().cublas_handle, how_b, how_a, n, m, k,
        ONE.ctypes.data, b.data.ptr, half, step_b, next_b, a.data.ptr, half, step_a, next_a,
        ZERO.ctypes.data, c.data.ptr, wide, n, m * n,
        c.size // (m * n), cublas.CUBLAS_COMPUTE_32F, cublas.CUBLAS_GEMM_DEFAULT,
    )  # fmt: skip
    return c


def _lies(x):
    """x, transposed for cuBLAS or not, the elements from one of its rows (or columns) to the next,
    and from one matrix to the next; a copy of x where it does not lie so evenly."""
    cublas = xp.cuda.cublas
    down, right = (s // x.itemsize for s in x.strides[-2:])
    along = _even(x)
    if along is not None and right == 1 and down >= x.shape[-1]:
        return x, cublas.CUBLAS_OP_N, down, along
    if along is not None and down == 1 and right >= x.shape[-2]:
        return x, cublas.CUBLAS_OP_T, right, along
    rows, columns = x.shape[-2:]
    return xp.ascontiguousarray(x), cublas.CUBLAS_OP_N, columns, rows * columns


def _even(x) -> int | None:
    """Elements from one matrix to the next, where that is always the same way."""
    along = wanted = None
    for size, stride in zip(x.shape[-3::-1], x.strides[-3::-1]):
        if size == 1:
            continue
        if wanted is not None and stride != wanted:
            return None
        along = stride // x.itemsize if along is None else along
        wanted = stride * size
    return along or 0
