"""``xp``: CuPy on a GPU, NumPy elsewhere, chosen once when this module is imported.

``TPARALLEL_BACKEND`` (on the command line ``--backend``, which sets it) is ``numpy``, the default,
or ``cupy``; asking for CuPy where no GPU answers is an error, never a silent change of plan.  Few
modules know which one it is: this one, ``comm/``'s transports and ``kernels/``.
"""

import os
from types import ModuleType

import numpy as np

from .errors import ConfigError

SHARED = 0.9  # of a GPU's memory, for the pools of the ranks that share it; contexts take the rest


def _choose(name: str) -> ModuleType:
    if name == "numpy":
        return np
    if name != "cupy":
        raise ConfigError(
            f"TPARALLEL_BACKEND must be numpy or cupy; it is {name!r}. Unset it for numpy."
        )
    try:
        import cupy

        usable = cupy.cuda.is_available()
    except ImportError as e:
        raise ConfigError(
            f"the cupy backend needs CuPy: {e}. Install the extra cuda12 or cuda13, or use numpy."
        ) from None
    if not usable:
        raise ConfigError("the cupy backend needs a GPU: no device answers. Use the numpy backend.")
    return cupy


name: str = os.environ.get("TPARALLEL_BACKEND", "numpy")
xp = _choose(name)


def to_host(x) -> np.ndarray:
    """The same numbers as a NumPy array (a copy only where ``x`` lives on a GPU)."""
    return x if isinstance(x, np.ndarray) else x.get() if hasattr(x, "get") else np.asarray(x)


def synchronize() -> None:
    """Wait until every queued kernel is done; on NumPy there is nothing to wait for."""
    if xp is not np:
        xp.cuda.get_current_stream().synchronize()


def use_local_device(rank: int, ranks: int) -> None:
    """One GPU for each of a node's ``ranks``, by node-local rank; where there are fewer, they share
    them, and none may take more than its part of the memory (or CUPY_GPU_MEMORY_LIMIT)."""
    if xp is np:
        return
    devices = xp.cuda.runtime.getDeviceCount()
    xp.cuda.Device(rank % devices).use()
    sharing = len(range(rank % devices, ranks, devices))
    if "CUPY_GPU_MEMORY_LIMIT" not in os.environ:
        limit = {"fraction": SHARED / sharing} if sharing > 1 else {"size": 0}
        xp.get_default_memory_pool().set_limit(**limit)


def free_unused() -> None:
    """Give memory that no array uses back to the device, for the ranks that share it."""
    if xp is not np:
        xp.get_default_memory_pool().free_all_blocks()


def device() -> str:
    """What computes, in words."""
    if xp is np:
        return "this machine's processor"
    count, use = xp.cuda.runtime.getDeviceCount(), xp.cuda.Device()
    found = xp.cuda.runtime.getDeviceProperties(use.id)
    return (
        f"{found['name'].decode()}, {found['totalGlobalMem'] / 2**30:.1f} GiB, compute capability "
        f"{use.compute_capability} ({count} here; a node's rank r takes GPU r mod {count})"
    )
