"""The functions where the time goes, in the version that this process uses: chosen once, here.

``plain``  the text of ``serial/``, on NumPy or CuPy arrays
``tuned``  the same functions by NumPy alone: operations in place on what the core's cache holds,
           attention in blocks
``fast``   with numba (``fast.py``), or on a GPU (``device.py``): fewer passes over memory too

The layers import these names from here and do not know which they got.  ``TPARALLEL_KERNELS``
says which; without it, on a CPU ``fast`` is taken where numba is installed and ``tuned`` where it
is not, and ``fast`` on a GPU.  Every function is tested against its plain twin.
"""

import os
from importlib import import_module
from importlib.util import find_spec

from ..backend import name as backend
from ..errors import ConfigError


def _choose(wanted: str) -> str:
    numba = find_spec("numba") is not None
    if wanted == "fast" and backend == "numpy" and not numba:
        raise ConfigError(
            "TPARALLEL_KERNELS=fast needs numba on a CPU, and it is missing. Unset it, or install "
            "the extra: pip install 'tparallel[fast]'."
        )
    possible = {"numpy": ("plain", "tuned", "fast"), "cupy": ("plain", "fast")}[backend]
    if wanted and wanted not in possible:
        raise ConfigError(
            f"TPARALLEL_KERNELS must be {' or '.join(possible)} with {backend}: it is {wanted}. "
            "Unset it."
        )
    return wanted or ("fast" if numba or backend == "cupy" else "tuned")


name = _choose(os.environ.get("TPARALLEL_KERNELS", ""))
_chosen = import_module(".device" if (name, backend) == ("fast", "cupy") else f".{name}", __name__)

HALVES: bool = getattr(_chosen, "HALVES", False)  # may activations be bfloat16?
ATTENTION: str = getattr(_chosen, "ATTENTION", "blocks")  # "cudnn": of bfloat16
if "TPARALLEL_ATTENTION" in os.environ and not HALVES:
    raise ConfigError(
        "TPARALLEL_ATTENTION chooses among a GPU's fast kernels: the backend is "
        f"{backend}, the kernels are {name}. Unset it."
    )


def check(activations: str) -> None:
    """Do these kernels take activations of that dtype ("": of the arithmetic's)?"""
    if activations and not HALVES:
        raise ConfigError(
            f"activations in {activations} need a GPU's fast kernels: the backend is {backend}, "
            f"the kernels are {name}. Use TPARALLEL_BACKEND=cupy and TPARALLEL_KERNELS=fast, or "
            "leave activations out."
        )


norm_forward = _chosen.norm_forward
norm_backward_input = _chosen.norm_backward_input
norm_backward_weight = _chosen.norm_backward_weight
activation_forward = _chosen.activation_forward
activation_backward = _chosen.activation_backward
rope_forward = _chosen.rope_forward
rope_backward = _chosen.rope_backward
heads_forward = _chosen.heads_forward
heads_backward = _chosen.heads_backward
scores_again = _chosen.scores_again
kept_scores = _chosen.kept_scores
rows_backward = _chosen.rows_backward
cross_entropy_forward = _chosen.cross_entropy_forward
cross_entropy_backward = _chosen.cross_entropy_backward
adamw_update = _chosen.adamw_update
