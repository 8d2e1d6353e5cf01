"""``cupy.ndarray``: a NumPy array that cannot be reached without saying so."""

import ctypes
from typing import NamedTuple

import numpy as np

from ._memory import Block
from ._queue import queue

SCALARS = (bool, int, float, complex, np.generic)
KDLCUDA = 2


class Pointer(NamedTuple):
    ptr: int


class ndarray:
    """``_a`` holds the numbers; ``base`` is the array that owns them, None for an owner."""

    __slots__ = ("__weakref__", "_a", "_memory", "base")
    __array_ufunc__ = None  # NumPy operators and functions give up
    __array_priority__ = 100
    __hash__ = None

    def __new__(cls, shape, dtype=float, memptr=None):
        """An array in memory that is there already."""
        size = np.dtype(dtype).itemsize * int(np.prod(shape))
        room = (ctypes.c_char * size).from_address(memptr.ptr)
        self = object.__new__(cls)
        self._a, self._memory, self.base = np.frombuffer(room, dtype).reshape(shape), memptr, None
        return self

    def __array__(self, *args, **kwargs):
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct "
            "a NumPy array explicitly."
        )

    def __array_function__(self, func, types, args, kwargs):
        raise TypeError(f"numpy.{func.__name__} was given an array of the device: use xp")

    def __repr__(self):
        return f"standin({self._a!r})"

    shape = property(lambda s: s._a.shape)
    strides = property(lambda s: s._a.strides)
    dtype = property(lambda s: s._a.dtype)
    ndim = property(lambda s: s._a.ndim)
    size = property(lambda s: s._a.size)
    itemsize = property(lambda s: s._a.itemsize)
    nbytes = property(lambda s: s._a.nbytes)
    flags = property(lambda s: s._a.flags)
    data = property(lambda s: Pointer(s._a.ctypes.data))
    T = property(lambda s: wrapped(s._a.T, s))

    # What the host sees, it waits for.

    def get(self, stream=None, order="C", out=None, blocking=True):
        if out is not None:
            if out.dtype != self.dtype or out.shape != self.shape:
                raise TypeError(f"out is {out.dtype} {out.shape}, not {self.dtype} {self.shape}")
            if not blocking:
                queue.copy_out(self._a.copy(), out)
                return out
        queue.wait("get")
        if out is None:
            return self._a.copy(order)
        out[...] = self._a
        return out

    def set(self, arr, stream=None):
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.dtype != self.dtype or arr.shape != self.shape:
            raise TypeError(f"{arr.dtype} {arr.shape} cannot be set to {self.dtype} {self.shape}")
        if not self.flags.c_contiguous:
            raise RuntimeError("Cannot set to non-contiguous array")
        queue.copy_in(arr)
        self._a[...] = arr

    def item(self):
        return self.get().item()

    def tolist(self):
        return self.get().tolist()

    def tobytes(self, order="C"):
        return self.get().tobytes(order)

    def nonzero(self):
        queue.wait("nonzero")
        return tuple(wrapped(i) for i in self._a.nonzero())

    def __bool__(self):
        return bool(self.get())

    def __int__(self):
        return int(self.get())

    def __index__(self):
        return self.get().__index__()

    def __float__(self):
        return float(self.get())

    def __len__(self):
        return len(self._a)

    def __iter__(self):
        return (self[i] for i in range(len(self._a)))

    # Reading and writing parts.

    def __getitem__(self, index):
        queue.work()
        index = _index(index, waits=True)
        part = self._a[index]
        if isinstance(part, np.generic):  # CuPy gives a view of no dims, NumPy a number
            part = self._a[(*index, ...) if isinstance(index, tuple) else (index, ...)]
        return wrapped(part, self)

    def __setitem__(self, index, value):
        if isinstance(value, np.ndarray) and value.ndim:
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        queue.work()
        self._a[_index(index)] = unwrapped(value)

    def fill(self, value):
        self[...] = value

    def view(self, dtype=None):
        return wrapped(self._a.view(dtype), self)

    def astype(self, dtype, order="K", casting=None, subok=None, copy=True):
        if not copy and np.dtype(dtype) == self.dtype:
            return self
        queue.work()
        return wrapped(self._a.astype(dtype, order))

    # What mpi4py asks for.

    def __dlpack_device__(self):
        return KDLCUDA, 0

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        queue.must_be_idle()
        capsule = self._a.__dlpack__(max_version=max_version)
        versioned = max_version is not None  # then the tensor comes behind 32 bytes
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        tensor = pointer(capsule, b"dltensor_versioned" if versioned else b"dltensor")
        device_type = tensor + 32 * versioned + ctypes.sizeof(ctypes.c_void_p)
        ctypes.c_int32.from_address(device_type).value = KDLCUDA
        return capsule

    @property
    def __cuda_array_interface__(self):
        queue.must_be_idle()
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self._a.ctypes.data, False),
            "strides": None if self.flags.c_contiguous else self.strides,
            "version": 3,
        }


def wrapped(a, *sources):
    """A result of NumPy's as an array of the device: a view of a source, or memory of its own."""
    if isinstance(a, tuple | list):
        return type(a)(wrapped(part, *sources) for part in a)
    if not isinstance(a, np.ndarray | np.generic):
        return a
    out = object.__new__(ndarray)
    out._a, out._memory = np.asarray(a), None
    if out._a.dtype.kind == "O":
        raise ValueError("Unsupported dtype object")
    owners = (s if s.base is None else s.base for s in sources if isinstance(s, ndarray))
    out.base = next((s for s in owners if _root(out._a) is _root(s._a)), None)
    if out.base is None:
        out._memory = Block(out.nbytes)
    return out


def unwrapped(x):
    """What NumPy may compute with; CuPy takes no NumPy arrays."""
    if isinstance(x, ndarray):
        return x._a
    if isinstance(x, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(x, tuple | list):
        return type(x)(map(unwrapped, x))
    return x


def asarray(a, dtype=None, order="K", copy=False):
    """From the host or the device."""
    if isinstance(a, ndarray):
        same = dtype is None or np.dtype(dtype) == a.dtype
        if same and not copy and (order != "C" or a.flags.c_contiguous):
            return a
        queue.work()
        return wrapped(np.array(a._a, dtype, order=order))
    queue.copy_in(a)
    return wrapped(np.array(a, dtype, order=order))


def array(a, dtype=None, copy=True, order="K"):
    """From the host or the device; a copy, unless told that none is needed."""
    return asarray(a, dtype, order, copy=bool(copy))


def _root(a):
    while isinstance(a.base, np.ndarray):
        a = a.base
    return a


def _index(index, waits=False):
    """An index of arrays of the device and of plain numbers; a mask in a read has unknown size."""
    parts = index if isinstance(index, tuple) else (index,)
    for part in parts:
        if isinstance(part, np.ndarray | list):
            raise TypeError(f"an index that must be copied to the device first: {type(part)}")
        if waits and isinstance(part, ndarray) and part.dtype.kind == "b":
            queue.wait("reading by a mask")
    plain = tuple(p._a if isinstance(p, ndarray) else p for p in parts)
    return plain if isinstance(index, tuple) else plain[0]


def _operator(name):
    from ._ufunc import product

    def method(self, *others):
        for other in others:
            if not isinstance(other, (ndarray, *SCALARS)):
                raise TypeError(f"Unsupported type {type(other)}")
        queue.work()
        plain = [unwrapped(o) for o in others]
        if name in ("__matmul__", "__rmatmul__"):
            pair = (self._a, *plain)
            return wrapped(product(*(pair if name == "__matmul__" else pair[::-1])))
        result = getattr(self._a, name)(*plain)
        if name.startswith("__i") and name != "__invert__":
            return self
        return wrapped(np.asarray(result))

    return method


_BINARY = "add sub mul truediv floordiv mod pow and or xor lshift rshift matmul"
for _name in _BINARY.split():
    for _side in ("", "r") + (("i",) if _name != "matmul" else ()):
        setattr(ndarray, f"__{_side}{_name}__", _operator(f"__{_side}{_name}__"))
_COMPARISONS = "lt le eq ne gt ge neg abs invert"
for _name in _COMPARISONS.split():
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))


def _method(name):
    def method(self, *args, **kwargs):
        queue.work()
        out = kwargs.pop("out", None)
        plain = [unwrapped(a) for a in args]
        source = _wide(self._a, name)
        result = np.asarray(getattr(source, name)(*plain, **kwargs))
        if source is not self._a and "dtype" not in kwargs:
            result = result.astype(self.dtype)
        result = wrapped(result, self)
        if out is None:
            return result
        out[...] = result
        return out

    return method


def _wide(a, name: str):
    """Sums of halves are made in float32, and rounded once."""
    sums = name in ("sum", "mean", "prod", "cumsum", "std", "var")
    return a.astype(np.float32) if sums and a.dtype.name == "bfloat16" else a


_METHODS = (
    "all any argmax argsort clip copy cumsum diagonal dot flatten max mean min prod ravel repeat "
    "reshape squeeze std sum swapaxes take trace transpose var"
)
for _name in _METHODS.split():
    setattr(ndarray, _name, _method(_name))
