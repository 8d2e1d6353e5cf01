"""``cupy.cuda.cublas``: the one call that this project makes itself, by addresses."""

import ctypes

import numpy as np

from ._queue import queue

CUBLAS_OP_N, CUBLAS_OP_T, CUBLAS_OP_C = 0, 1, 2
CUBLAS_COMPUTE_32F = 68
CUBLAS_GEMM_DEFAULT = -1
HANDLE = 4242
MADE = {(14, 14, 14), (14, 14, 0)}  # which factors make which results, in CUBLAS_COMPUTE_32F


def gemmStridedBatchedEx(
    handle, transa, transb, m, n, k,
    alpha, a, a_type, lda, a_stride, b, b_type, ldb, b_stride,
    beta, c, c_type, ldc, c_stride, count, compute_type, algo,
):  # fmt: skip
    """C = alpha op(A) op(B) + beta C of ``count`` matrices that lie column by column."""
    queue.work()
    assert handle == HANDLE and algo == CUBLAS_GEMM_DEFAULT
    assert (a_type, b_type, c_type) in MADE and compute_type == CUBLAS_COMPUTE_32F
    scale, keep = (ctypes.c_float.from_address(p).value for p in (alpha, beta))
    left = _matrices(a, a_type, lda, a_stride, count, *((k, m) if transa else (m, k)))
    right = _matrices(b, b_type, ldb, b_stride, count, *((n, k) if transb else (k, n)))
    out = _matrices(c, c_type, ldc, c_stride, count, m, n)
    left, right = (x.astype(np.float32) for x in (left, right))
    left = left.swapaxes(1, 2) if transa else left
    right = right.swapaxes(1, 2) if transb else right
    assert keep == 0
    out[...] = scale * (left @ right)


def _matrices(address, kind, step, stride, count, rows, columns):
    """(count, rows, columns), as a view of memory."""
    import ml_dtypes

    dtype = np.dtype({0: np.float32, 14: ml_dtypes.bfloat16}[kind])  # by cudaDataType
    assert step >= rows, "a column is longer than the way to the next"
    size = (count - 1) * stride + (columns - 1) * step + rows
    room = (ctypes.c_char * (size * dtype.itemsize)).from_address(address)
    strides = (stride * dtype.itemsize, dtype.itemsize, step * dtype.itemsize)
    return np.lib.stride_tricks.as_strided(
        np.frombuffer(room, dtype), (count, rows, columns), strides
    )
