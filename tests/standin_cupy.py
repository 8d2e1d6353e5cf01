"""What a test sets to run on the stand-in for CuPy (``tests/standin``), and how it asks it."""

import os
from pathlib import Path

FOLDER = Path(__file__).with_name("standin")
CUPY = {
    "TPARALLEL_BACKEND": "cupy",
    "TPARALLEL_KERNELS": "plain",
    "TPARALLEL_CHECK": "0",  # the checked verbs have tests of their own
    "PYTHONPATH": os.pathsep.join(filter(None, [str(FOLDER), os.environ.get("PYTHONPATH", "")])),
}
STAGED = {**CUPY, "TPARALLEL_CUDA_AWARE": "0"}
DIRECT = {**CUPY, "TPARALLEL_CUDA_AWARE": "1"}
