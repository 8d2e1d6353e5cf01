"""A strict stand-in for CuPy, for machines without a GPU: NumPy's numbers, CuPy's rules.

Put the folder above this one on ``PYTHONPATH`` and ``import cupy`` finds it.  What CuPy refuses is
refused: implicit conversion to NumPy, arithmetic with NumPy arrays, batched products in bfloat16,
names that CuPy does not have.  And what on a GPU goes wrong by luck goes wrong here every time:

- a kernel runs later: whoever hands its result to MPI without waiting is told so;
- a copy from or to pinned memory runs later: a host buffer that is touched too early is wrong;
- memory is counted by a pool, with CuPy's hooks, limits and error;
- what makes the host wait for the device is written down, with the line that did it.

``__dlpack__`` and ``__cuda_array_interface__`` say "device memory" and point to the host's, so
that mpi4py takes the branch that it takes for CuPy, and any MPI can read what it is given.
Nothing here says anything about speed, or about what a CUDA compiler thinks of a kernel.
"""

import numpy as _np

from . import cuda
from ._array import array, asarray, ndarray
from ._array import unwrapped as _unwrapped
from ._array import wrapped as _wrapped
from ._kernels import ElementwiseKernel, ReductionKernel
from ._queue import queue as _queue
from ._raw import RawKernel
from ._ufunc import ufunc
from .cuda import get_default_memory_pool, get_default_pinned_memory_pool

__all__ = [
    "ElementwiseKernel",
    "RawKernel",
    "ReductionKernel",
    "array",
    "asarray",
    "cuda",
    "get_default_memory_pool",
    "get_default_pinned_memory_pool",
    "ndarray",
    "ufunc",
]
__version__ = "14.2.0+standin"
_SAME = (  # as they are in NumPy
    "bool_ dtype e float16 float32 float64 iinfo inf int8 int16 int32 int64 isscalar nan newaxis "
    "pi result_type uint8 uint16 uint32 uint64"
)
_UFUNCS = (
    "abs absolute add bitwise_and divide equal exp exp2 expm1 floor greater greater_equal invert "
    "isfinite isinf isnan less less_equal log log1p log2 logical_and logical_not logical_or matmul "
    "maximum minimum multiply negative not_equal power rint sign sqrt square subtract tanh "
    "true_divide"
)
_FUNCTIONS = (
    "all any arange argmax argsort array_equal broadcast_to clip concatenate cumsum diff dot "
    "empty empty_like expand_dims eye full full_like max may_share_memory mean min moveaxis ones "
    "ones_like outer partition prod repeat reshape roll searchsorted split squeeze stack sum "
    "swapaxes take take_along_axis tensordot tile trace transpose tri tril triu vdot where zeros "
    "zeros_like"
)

for _name in _SAME.split():
    globals()[_name] = getattr(_np, _name)
for _name in _UFUNCS.split():
    globals()[_name] = ufunc(getattr(_np, _name))


def _function(function):
    def call(*args, **kwargs):
        _queue.work()
        return _wrapped(
            function(*map(_unwrapped, args), **{k: _unwrapped(v) for k, v in kwargs.items()}),
            *args,
        )

    call.__name__ = function.__name__
    return call


for _name in _FUNCTIONS.split():
    globals()[_name] = _function(getattr(_np, _name))


def ascontiguousarray(a, dtype=None):
    a = a if dtype is None else a.astype(dtype, copy=False)
    return a if a.flags.c_contiguous else a.copy()


def asnumpy(a):
    return a.get()


def get_array_module(*args):
    import cupy

    return cupy if any(isinstance(a, ndarray) for a in args) else _np


def unique(a, **kwargs):
    _queue.wait("unique")  # the host must know how many there are
    found = _np.unique(_unwrapped(a), **kwargs)
    return tuple(map(_wrapped, found)) if isinstance(found, tuple) else _wrapped(found)


def nonzero(a):
    return a.nonzero()
