"""Device memory: a pool that counts, hooks, limits, and windows that other processes can open."""

import ctypes
import mmap
import os
import tempfile

TOTAL = int(os.environ.get("STANDIN_DEVICE_BYTES", 8 << 30))
UNIT = 512  # bytes


class OutOfMemoryError(MemoryError):
    def __init__(self, size, total, limit=0):
        limited = f", limit set to: {limit:,} bytes" if limit else ""
        super().__init__(
            f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes{limited})."
        )


class MemoryPool:
    """Counts bytes as CuPy's does; what is freed is not kept for later."""

    def __init__(self):
        self._used, self._limit = 0, 0

    def _take(self, size: int) -> int:
        held = -(-size // UNIT) * UNIT
        if held > (self._limit or TOTAL) - self._used:
            raise OutOfMemoryError(held, self._used, self._limit)
        self._used += held
        return held

    def used_bytes(self) -> int:
        return self._used

    def total_bytes(self) -> int:
        return self._used

    def free_bytes(self) -> int:
        return 0

    def free_all_blocks(self, stream=None) -> None:
        pass

    def set_limit(self, size=None, fraction=None) -> None:
        self._limit = int((fraction or 0) * TOTAL) if size is None else size

    def get_limit(self) -> int:
        return self._limit


class MemoryHook:
    name = "MemoryHook"

    def __enter__(self):
        hooks.append(self)
        return self

    def __exit__(self, *error) -> None:
        hooks.remove(self)

    def malloc_postprocess(self, **kwargs) -> None:
        pass

    def free_postprocess(self, **kwargs) -> None:
        pass


class Block:
    """The memory of one array, from the pool."""

    def __init__(self, size: int):
        self.held = pool._take(size)
        for hook in hooks if self.held else ():
            hook.malloc_postprocess(
                device_id=0, size=size, mem_size=self.held, mem_ptr=id(self), pmem_id=id(self)
            )

    def __del__(self):
        held = getattr(self, "held", 0)
        pool._used -= held
        for hook in hooks if held else ():
            hook.free_postprocess(device_id=0, mem_size=held, mem_ptr=id(self), pmem_id=id(self))


class Memory:
    """Memory of its own, past the pool: a file in shared memory, so that others can open it."""

    def __init__(self, size: int):
        folder = "/dev/shm" if os.path.isdir("/dev/shm") else None
        descriptor, self._path = tempfile.mkstemp(prefix="standin-", dir=folder)
        os.ftruncate(descriptor, size)
        os.close(descriptor)
        self.size, self.device_id, self.ptr = size, 0, opened(self._path.encode())
        _paths[self.ptr] = self._path

    def __del__(self):
        os.unlink(_paths.pop(self.ptr))
        closed(self.ptr)


class UnownedMemory:
    def __init__(self, ptr, size, owner, device_id=-1):
        self.ptr, self.size, self._owner = ptr, size, owner


class MemoryPointer:
    def __init__(self, mem, offset):
        self.mem, self.ptr = mem, mem.ptr + offset


def handle_of(ptr: int) -> bytes:
    return _paths[ptr].encode().ljust(64, b"\0")


def opened(handle: bytes, flags: int = 0) -> int:
    """Maps another process's memory; its address here."""
    with open(handle.rstrip(b"\0").decode(), "r+b") as file:
        mapping = mmap.mmap(file.fileno(), 0)
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    _mappings[address] = mapping
    return address


def closed(ptr: int) -> None:
    _mappings.pop(ptr, None)


def get_default_memory_pool() -> MemoryPool:
    return pool


class PinnedMemoryPool:
    def free_all_blocks(self) -> None:
        pass


def get_default_pinned_memory_pool() -> PinnedMemoryPool:
    return PinnedMemoryPool()


_paths: dict[int, str] = {}  # address -> file, of the windows made here
_mappings: dict[int, mmap.mmap] = {}  # address -> mapping, of every window opened here
hooks: list[MemoryHook] = []
pool = MemoryPool()
