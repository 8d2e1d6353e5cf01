"""On a GPU (``scripts/check_gpu``, ``pytest -m gpu``): what the stand-in can only rehearse."""

import os
import pickle

import pytest
from mpitest import mpi
from test_cupy_bfloat16 import HALF, LLAMA, agrees_with_float64, halves  # noqa: F401 (a fixture)
from test_cupy_kernels import float64s, kernels_agree  # noqa: F401 (a fixture)
from test_cupy_layouts import (  # noqa: F401 (a fixture)
    MODEL,
    TRAIN,
    agrees_with_numpy,
    numpys,
    on_part,
)
from test_cupy_transport import DTYPES, verbs_agree

from tparallel.comm.axis import Axis
from tparallel.comm.ledger import Ledger
from tparallel.config import Layout
from tparallel.layouts import for_ranks

pytestmark = pytest.mark.gpu
FAST = {"TPARALLEL_BACKEND": "cupy", "TPARALLEL_KERNELS": "fast"}


@mpi(1, 2, 4, timeout=300, env=FAST, fresh=True)
def test_every_layout_on_one_device_finds_numpys_gradients(comm, numpys):  # noqa: F811
    """Loss, norm, gradients within 1e-12 of NumPy's, bytes by the closed forms."""
    for layout in for_ranks(comm.size, MODEL, TRAIN):
        agrees_with_numpy(comm, layout, *pickle.loads(numpys.read_bytes()), transports=("", ""))


@mpi(2, timeout=300, env=FAST, fresh=True)
@pytest.mark.parametrize("transport", ["staged", "ipc"])
def test_every_verb_between_two_ranks_on_one_device(comm, transport):
    """The bits of NumPy's sums."""
    os.environ["TPARALLEL_TRANSPORT"] = transport
    axis = Axis("tp", comm.Dup(), Ledger())
    for dtype in DTYPES:
        verbs_agree(axis, dtype)
    axis.close()


@mpi(1, 2, timeout=300, env=FAST, fresh=True)
def test_bfloat16_activations_give_float64s_gradients_but_for_rounding(comm, halves):  # noqa: F811
    """GPT-2's layers in every layout, Llama's on one rank (with cuDNN's attention where it is)."""
    truth = pickle.loads(halves.read_bytes())
    asked = [(MODEL, layout, "gpt2") for layout in for_ranks(comm.size, MODEL, HALF)]
    for model, layout, name in [(LLAMA, Layout(), "llama"), *asked]:
        what = model, HALF, layout, truth[name, 0.0]
        on_part(comm, layout, lambda part, what=what: agrees_with_float64(part, *what))


@mpi(1, timeout=300, env=FAST, fresh=True)
def test_every_kernel_on_the_device_gives_numpys_numbers(comm, float64s):  # noqa: F811
    """As compiled for the device, float64 and float32, against NumPy in float64."""
    kernels_agree(float64s)
