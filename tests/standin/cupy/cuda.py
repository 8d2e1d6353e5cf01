"""Devices, streams, memory: the parts of ``cupy.cuda`` that this project uses."""

import os as _os
import time as _time

import numpy as _np

from . import _cublas as cublas
from . import _memory
from ._memory import (  # noqa: F401 (names of this module)
    Memory,
    MemoryHook,
    MemoryPointer,
    MemoryPool,
    UnownedMemory,
    get_default_memory_pool,
    get_default_pinned_memory_pool,
)
from ._queue import queue as _queue


class memory:
    OutOfMemoryError = _memory.OutOfMemoryError


class Stream:
    null: "Stream"
    ptr = 0

    def __init__(self, null=False, non_blocking=False):
        pass

    def synchronize(self) -> None:
        _queue.wait("synchronize")

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        pass


Stream.null = Stream(null=True)


class Event:
    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self._time = 0.0

    def record(self, stream=None) -> None:
        self._time = _time.perf_counter()

    def synchronize(self) -> None:
        _queue.wait("event")


def get_elapsed_time(start, end) -> float:
    return 1e3 * (end._time - start._time)


def get_current_stream(device_id=-1) -> Stream:
    return Stream.null


def is_available() -> bool:
    return runtime.getDeviceCount() > 0


_used = [0]


class Device:
    def __init__(self, device=None):
        self.id = _used[-1] if device is None else int(device)
        self.compute_capability = "90"

    @property
    def cublas_handle(self) -> int:
        return cublas.HANDLE

    def use(self) -> None:
        _used.append(self.id)

    def synchronize(self) -> None:
        _queue.wait("device")

    @property
    def mem_info(self):
        return runtime.memGetInfo()


class runtime:
    CUDARuntimeError = RuntimeError
    cudaMemcpyDeviceToDevice = 3
    CUDA_R_32F, CUDA_R_16BF = 0, 14
    cudaIpcMemLazyEnablePeerAccess = 1
    ipcGetMemHandle = staticmethod(_memory.handle_of)
    ipcOpenMemHandle = staticmethod(_memory.opened)
    ipcCloseMemHandle = staticmethod(_memory.closed)

    @staticmethod
    def getDeviceCount() -> int:
        return int(_os.environ.get("STANDIN_DEVICES", "1"))

    @staticmethod
    def getDeviceProperties(device) -> dict:
        return {"name": b"stand-in", "totalGlobalMem": _memory.TOTAL, "major": 9, "minor": 0}

    @staticmethod
    def driverGetVersion() -> int:
        return 13000

    @staticmethod
    def runtimeGetVersion() -> int:
        return 13000

    @staticmethod
    def memGetInfo() -> tuple[int, int]:
        return _memory.TOTAL - get_default_memory_pool().total_bytes(), _memory.TOTAL


def alloc_pinned_memory(size):
    return _np.empty(size, _np.uint8)
