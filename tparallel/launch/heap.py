"""How this process gets the memory of its arrays from the system (glibc on Linux; elsewhere
nothing here does anything).

glibc returns large arrays to the system when they are freed and is given them again, page by page,
in the next layer: a sixth of a training step.  So freed memory is kept.  And a page is 4 KiB unless
the system is asked for huge ones: a matrix product then finds its operands' addresses more slowly.
So a part of the heap is asked for before anything is in it, marked, and given to malloc.
"""

import ctypes
import mmap
import os
import resource

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
SHARE = 4  # marked is a quarter of the machine's memory; what is never used costs nothing


def keep_freed_memory() -> None:
    """Let this process keep the memory of freed arrays, in huge pages where the system has them."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, -1)
    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS))
    if hasattr(mmap, "MADV_HUGEPAGE") and all(n == resource.RLIM_INFINITY for n in limits):
        _mark_huge(libc, os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE // SHARE)


def _mark_huge(libc, size: int) -> None:
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    room = libc.malloc(size)
    if room:
        first = -(-room // mmap.PAGESIZE) * mmap.PAGESIZE
        libc.madvise(first, room + size - first & -mmap.PAGESIZE, mmap.MADV_HUGEPAGE)
        libc.free(room)
