"""Elementwise functions, with CuPy's rules for ``out`` and for what may be mixed."""

import numpy as np

from ._array import ndarray, unwrapped, wrapped
from ._queue import queue


class ufunc:
    def __init__(self, function):
        self.function, self.__name__ = function, function.__name__

    def __call__(self, *args, out=None, dtype=None):
        if out is not None and not isinstance(out, ndarray):
            raise TypeError(f"return arrays must be of cupy.ndarray: {type(out)}")
        queue.work()
        plain = [unwrapped(a) for a in args]
        if self.function is np.matmul:
            result = product(*plain)
        else:
            result = self.function(*plain, **({} if dtype is None else {"dtype": dtype}))
        if out is None:
            return wrapped(result)
        if not np.can_cast(result.dtype, out.dtype, "same_kind"):
            raise TypeError(f"cannot cast {result.dtype} to {out.dtype} with casting same_kind")
        out._a[...] = result
        return out

    def at(self, a, indices, b=None):
        if self.__name__ not in ("add", "subtract", "maximum", "minimum"):
            raise NotImplementedError(f"`{self.__name__}.at` is not supported yet")
        queue.work()
        if isinstance(b, np.ndarray):
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        self.function.at(a._a, _index(indices), unwrapped(b))

    def reduce(self, array, axis=0, dtype=None, out=None, keepdims=False):
        queue.work()
        return wrapped(self.function.reduce(array._a, axis, dtype, keepdims=keepdims))


def _index(indices):
    return tuple(map(unwrapped, indices)) if isinstance(indices, tuple) else unwrapped(indices)


def product(a, b):
    """CuPy multiplies two matrices in half, but no batches of them in bfloat16."""
    if "bfloat16" not in (a.dtype.name, b.dtype.name):
        return np.matmul(a, b)
    if max(a.ndim, b.ndim) > 2:
        raise TypeError("no batched product of bfloat16: cublasGemmStridedBatchedEx is not used")
    return np.matmul(a.astype(np.float32), b.astype(np.float32)).astype(a.dtype)
