"""Compiled kernels are kept on disk: beside the package, or in the user's cache, or nowhere.

numba takes the first folder that can be written: ``NUMBA_CACHE_DIR``, ``__pycache__`` beside this
file, ``~/.cache/numba``.  Where none can be, every process compiles what it uses, which takes some
seconds.

Many ranks may start at once on an empty cache.  numba writes each file whole, but the index before
the code that it names: whoever looks in between takes code of another type, or of an older source.
Locking the folder closes that gap.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pickle import UnpicklingError
from typing import Any

from numba import njit
from numba.core.caching import FunctionCache

# Sums may be reordered into vectors, but NaN and infinity keep their meaning: a kernel that lost
# them would hide a training that has broken down.
REORDER = {"reassoc", "contract", "arcp", "nsz", "afn"}
OPTIONS: Any = {"fastmath": REORDER, "error_model": "numpy", "nogil": True}
UNUSABLE = OSError, EOFError, UnpicklingError  # a full disk, a damaged file: as if it were not kept


def kernel(function: Callable) -> Any:
    """``function``, compiled or loaded when it is first called with new types."""
    compiled = njit(**OPTIONS)(function)
    with suppress(RuntimeError):  # no folder can be written
        compiled._cache = _Shared(function)
    return compiled


class _Shared(FunctionCache):
    """numba's cache, which many processes read together and one at a time writes."""

    def load_overload(self, sig, target_context):
        with suppress(*UNUSABLE), self._locked(fcntl.LOCK_SH):
            return super().load_overload(sig, target_context)
        return None

    def save_overload(self, sig, data):
        with suppress(*UNUSABLE), self._locked(fcntl.LOCK_EX):
            super().save_overload(sig, data)

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        folder = os.open(self.cache_path, os.O_RDONLY)
        try:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(folder, how)
            yield
        finally:
            os.close(folder)
