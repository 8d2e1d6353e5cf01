"""A tensor of a graph: its dims, and where its numbers lie once it is given an address."""

import ctypes

import ml_dtypes
import numpy as np

DTYPES = {"FLOAT": np.dtype(np.float32), "BFLOAT16": np.dtype(ml_dtypes.bfloat16)}


class Tensor:
    def __init__(self, name, dim, stride, kind, is_virtual):
        self.name, self.dims, self.strides = name, tuple(dim), tuple(stride)
        self.kind, self.is_virtual = kind, is_virtual

    def set_output(self, is_output):
        self.is_virtual = not is_output
        return self

    def set_dim(self, dims):
        self.dims = tuple(dims)
        return self

    def set_stride(self, strides):
        self.strides = tuple(strides)
        return self

    def set_data_type(self, kind):
        self.kind = kind
        return self

    def check(self) -> None:
        assert len(self.dims) == len(self.strides) == 4 and not self.is_virtual, self.name
        assert self.strides[-1] == 1, f"{self.name}: the last dim must lie side by side"
        assert self.kind.name == ("FLOAT" if self.name == "stats" else "BFLOAT16"), self.name

    def at(self, address: int):
        """The numbers there, as a view of memory."""
        dtype = DTYPES[self.kind.name]
        last = sum((n - 1) * step for n, step in zip(self.dims, self.strides))
        room = (ctypes.c_char * ((last + 1) * dtype.itemsize)).from_address(address)
        strides = [step * dtype.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(np.frombuffer(room, dtype), self.dims, strides)
