"""A stand-in for nvidia-cudnn-frontend: the part of its graph API that attention takes.

A graph is described, built, and then run on addresses: every tensor that is not made inside must
be given one.  What cuDNN has no kernel for is refused, and so is a run before the plan is built.
"""

import enum

import numpy as np
from cupy._queue import queue as _queue

from ._attention import backward as _backward
from ._attention import forward as _forward
from ._tensor import Tensor as _Tensor


class cudnnGraphNotSupportedError(RuntimeError):
    pass


class data_type(enum.Enum):
    NOT_SET, FLOAT, HALF, BFLOAT16 = range(4)


class heur_mode(enum.Enum):
    A, B, FALLBACK = range(3)


_HANDLES: dict[int, int] = {}  # handle -> stream
WORKSPACE = 1000


def backend_version() -> int:
    return 91700


def create_handle() -> int:
    _HANDLES[7000 + len(_HANDLES)] = 0
    return max(_HANDLES)


def set_stream(handle: int, stream: int) -> None:
    _HANDLES[handle] = stream


class pygraph:
    def __init__(
        self,
        name="test_graph",
        io_data_type=data_type.NOT_SET,
        intermediate_data_type=data_type.NOT_SET,
        compute_data_type=data_type.NOT_SET,
        handle=None,
    ):
        assert handle in _HANDLES and compute_data_type == data_type.FLOAT
        self.io, self.tensors, self.operation, self.is_built = io_data_type, [], None, False

    def tensor(self, dim, stride, data_type=data_type.NOT_SET, name=""):
        return self._added(_Tensor(name, dim, stride, data_type, is_virtual=False))

    def _added(self, tensor):
        self.tensors.append(tensor)
        return tensor

    def _made(self, *names):
        return [self._added(_Tensor(n, [], [], self.io, is_virtual=True)) for n in names]

    def sdpa(
        self, q, k, v, attn_scale=None, use_causal_mask=False, generate_stats=None, name=""
    ):  # fmt: skip
        assert isinstance(attn_scale, float) and generate_stats is True
        o, stats = self._made("o", "stats")
        self.operation = _forward, attn_scale, use_causal_mask, (q, k, v, o, stats)
        return o, stats

    def sdpa_backward(
        self, q, k, v, o, dO, stats, attn_scale=None, use_causal_mask=False, name=""
    ):  # fmt: skip
        assert isinstance(attn_scale, float)
        made = self._made("dQ", "dK", "dV")
        self.operation = _backward, attn_scale, use_causal_mask, (q, k, v, o, dO, stats, *made)
        return made

    def build(self, modes):
        assert all(isinstance(mode, heur_mode) for mode in modes)
        q, k, v = self.operation[-1][:3]
        (B, H, _, K), (Bk, Hkv, _, Kk) = q.dims, k.dims
        if K % 8 or K > 128 or (Bk, Kk) != (B, K) or H % Hkv or k.dims != v.dims:
            raise cudnnGraphNotSupportedError(f"no kernel for {q.dims} and {k.dims}")
        for tensor in self.tensors:
            tensor.check()
        self.is_built = True

    def get_workspace_size(self) -> int:
        assert self.is_built
        return WORKSPACE

    def execute(self, tensor_to_device_buffer, workspace, handle=None):
        assert self.is_built and handle in _HANDLES and workspace
        _queue.work()
        run, scale, is_causal, tensors = self.operation
        if set(tensor_to_device_buffer) != set(self.tensors):
            raise RuntimeError("a tensor of the graph has no memory, or another one has")
        arrays = [tensor.at(tensor_to_device_buffer[tensor]) for tensor in tensors]
        with np.errstate(all="raise", under="ignore"):
            run(scale, is_causal, *arrays)
