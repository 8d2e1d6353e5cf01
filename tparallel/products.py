"""``product(a, b)``: a b, of two matrices, by the library that this process uses; chosen once.
A third argument, an array or None, is where the result may be put.

``TPARALLEL_PRODUCTS`` says by which:

``array``     NumPy's or CuPy's own
``mkl``       Intel's MKL, for NumPy arrays (mkl.py)
``bfloat16``  on a GPU: float32 factors are rounded to bfloat16 for its tensor cores, which add in
              float32, and the result too, as PyTorch's autocast does

Without it MKL is taken where it is installed and the arrays are NumPy's, but not by the plain
kernels, which are what it is compared with.
"""

import os
from collections.abc import Callable

from . import mkl
from .backend import name as backend
from .backend import xp
from .errors import ConfigError

NEEDS = {"array": backend, "mkl": "numpy", "bfloat16": "cupy"}  # the backend of each


def _choose(wanted: str) -> str:
    if NEEDS.get(wanted or "array") != backend:
        raise ConfigError(
            "TPARALLEL_PRODUCTS must be array, mkl with NumPy arrays, or bfloat16 with CuPy's: it "
            f"is {wanted!r}, the backend {backend}. Unset it."
        )
    if wanted == "mkl" and not mkl.installed():
        raise ConfigError(
            "TPARALLEL_PRODUCTS=mkl needs the package mkl, and it is missing. Unset it, or install "
            "the extra: pip install 'tparallel[mkl]'."
        )
    plain = os.environ.get("TPARALLEL_KERNELS") == "plain"
    takes_mkl = backend == "numpy" and mkl.installed() and not plain
    return wanted or ("mkl" if takes_mkl else "array")


def _by_array(a, b, out=None):
    return xp.matmul(a, b, out=out)


def _in_bfloat16(a, b, out=None):
    import ml_dtypes

    if a.dtype != xp.float32:
        return xp.matmul(a, b, out=out)
    return (a.astype(ml_dtypes.bfloat16) @ b.astype(ml_dtypes.bfloat16)).astype(xp.float32)


name = _choose(os.environ.get("TPARALLEL_PRODUCTS", ""))
_OF: dict[str, Callable] = {"array": _by_array, "bfloat16": _in_bfloat16}
product = mkl.make_product() if name == "mkl" else _OF[name]
