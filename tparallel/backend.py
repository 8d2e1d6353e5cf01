"""``xp``: CuPy on a GPU, NumPy elsewhere, chosen once when this module is imported.

Only this module and ``comm/transport.py`` know which one it is.  ``TPARALLEL_BACKEND`` is
``numpy`` (the default) or ``cupy``; asking for CuPy where no GPU answers is an error, never a
silent change of plan.
"""

import os
from types import ModuleType

import numpy as np

from .errors import ConfigError


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


def use_local_device(local_rank: int) -> None:
    """One GPU per rank of a node, by node-local rank; several ranks share one if they must."""
    if xp is not np:
        xp.cuda.Device(local_rank % xp.cuda.runtime.getDeviceCount()).use()
