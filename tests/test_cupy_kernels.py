"""The kernels for a GPU, their own C++ compiled for this machine: NumPy's numbers, every layout."""

import importlib.util
import pickle
import shutil

import numpy as np
import pytest
from kernel_cases import answers
from mpitest import mpi
from standin_cupy import CUPY
from test_cupy_layouts import MODEL, TRAIN, agrees_with_numpy, numpys, rows  # noqa: F401 (a fixture)

from tparallel.config import Layout, replace

BOUND = {"float64": 1e-13, "float32": 2e-5}  # max |a − b| / max |b|
if importlib.util.find_spec("ml_dtypes"):
    BOUND["bfloat16"] = 2.0**-8  # u, of one rounding to 8 bits: see bound()
DTYPES_OF_SUMS = {"float64": "float64", "float32": "float32", "bfloat16": "float32"}
FAST = {**CUPY, "TPARALLEL_KERNELS": "fast"}
compiled = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler"
)


@pytest.fixture(scope="session")
def float64s(tmp_path_factory):
    """NumPy's answers in float64, to the inputs as each dtype rounds them."""
    from tparallel.kernels import plain

    path = tmp_path_factory.mktemp("numpy") / "kernels"
    path.write_bytes(pickle.dumps({d: answers(plain, d, np.asarray, "float64") for d in BOUND}))
    return path


def kernels_agree(float64s):
    """Each of device.py's functions; attention in blocks, with the probabilities kept and made
    again, and by cuDNN where that is installed."""
    import cupy

    from tparallel import kernels
    from tparallel.kernels import device, device_heads, flash

    assert kernels.heads_forward is device.heads_forward
    device_heads.BLOCK, installed = 16, flash.name
    ways = [("blocks", 0), ("blocks", 1000), *[(installed, 0)] * (installed == "cudnn")]
    for dtype, truth in pickle.loads(float64s.read_bytes()).items():
        for flash.name, device_heads.KEEP in ways:
            ours = answers(device, dtype, cupy.asarray)
            assert ours.keys() == truth.keys()
            for name, x in ours.items():
                assert x.dtype.name in (dtype, DTYPES_OF_SUMS[dtype]), name
                assert x.shape == truth[name].shape, name
                error = np.abs(x.astype("f8") - truth[name]).max() / np.abs(truth[name]).max()
                what = name, dtype, flash.name, device_heads.KEEP, error
                assert error <= bound(name, x.dtype.name), what


def bound(name: str, dtype: str) -> float:
    """Of bfloat16: u for each array that is rounded between the inputs and the result, itself too;
    a norm's gradients come from x̂, attention's from p and ds."""
    roundings = 4 if "attention" in name else 2 if "norm" in name and " d" in name else 1
    return BOUND[dtype] * (roundings if dtype == "bfloat16" else 1)


@compiled
@mpi(1, timeout=120, env=FAST, fresh=True)
def test_every_kernel_gives_numpys_numbers(comm, float64s):
    """In float64, float32 and bfloat16, against NumPy in float64."""
    kernels_agree(float64s)


@compiled
@mpi(1, env=FAST, fresh=True)
def test_what_attention_keeps_is_what_kept_scores_says(comm):
    """No T × T array unless T is short; made again, it is the same bits."""
    import cupy

    from tparallel.compare.memory import nbytes
    from tparallel.kernels import device, device_heads

    q, kv = (
        cupy.asarray(np.random.default_rng(n).normal(size=s))
        for n, s in enumerate([(2, 40, 4, 8), (2, 40, 2, 2, 8)])
    )
    device_heads.BLOCK = 16
    for device_heads.KEEP in (0, 1000):
        _, (_, _, scores, _) = device.heads_forward(q, kv)
        assert nbytes(scores) == 8 * 2 * 4 * device.kept_scores(40)
        again = device.scores_again(q, kv)
        pairs = [(scores.log_sum, again.log_sum), *zip(scores.kept or (), again.kept or ())]
        assert all(a.tobytes() == b.tobytes() for a, b in pairs)
    device_heads.KEEP = 0
    assert device.kept_scores(4096) == 4096


@mpi(1, env=FAST)
def test_batches_of_bfloat16_matrices_are_multiplied_however_they_lie(comm):
    """Exact products, sums in float32; what lies evenly is read where it is, by rows or columns."""
    storage_dtype = pytest.importorskip("tparallel.zero.precision").storage_dtype
    pytest.importorskip("ml_dtypes")
    import cupy

    from tparallel.kernels import batched

    def halves(*shape):
        x = np.random.default_rng(shape).normal(size=shape)
        return cupy.asarray(x.astype(storage_dtype("bfloat16")))

    x, even = halves(2, 3, 4, 6), halves(2, 3, 8, 6)[..., 2:6, :]
    for a, b, copied in (
        (x, x.swapaxes(2, 3), (False, False)),  # columns of x are rows of its transpose
        (even, even.swapaxes(2, 3), (False, False)),  # from matrix to matrix always 48 numbers
        (x[..., :3], x[:1, :1, :3], (False, False)),  # a part of each row; one for all
        (x[..., ::2], x[:, :, :3], (True, False)),  # every second number
        (x.transpose(1, 0, 2, 3), x.transpose(1, 0, 3, 2), (True, True)),  # uneven ways
        (x[0, 0], x[1, 2].T, (False, False)),
    ):
        exact = a.get().astype("f8") @ b.get().astype("f8")
        found = batched.product(a, b).get()
        assert found.dtype == np.float32 and np.abs(found - exact).max() < 1e-5
        for operand, is_copy in zip((a, b), copied):
            spread = cupy.broadcast_to(operand, (*exact.shape[:-2], *operand.shape[-2:]))
            assert (batched._lies(spread)[0] is not spread) == is_copy


@compiled
@mpi(2, timeout=120, env=FAST, fresh=True)
def test_every_method_trains_alike_with_these_kernels(comm, numpys):  # noqa: F811
    """Gradients within 1e-12 of NumPy's plain ones, bytes held and sent by the closed forms."""
    for layout in (Layout(tp=2), Layout(pp=2, microbatches=2), Layout(dp=2, zero=3)):
        agrees_with_numpy(comm, layout, *pickle.loads(numpys.read_bytes()))


@compiled
@mpi(1, env=FAST, fresh=True)
def test_these_kernels_never_make_the_host_wait(comm):
    """A training step on one rank: the loss, then loss and norm, as with the plain text."""
    from cupy._queue import queue

    from tparallel.train import Trainer

    trainer = Trainer(MODEL, TRAIN, Layout(microbatches=2), comm)
    trainer.step(0, *rows(0))
    queue.waits.clear()
    trainer.step(1, *rows(1))
    assert len(queue.waits) == 2, queue.waits


@mpi(2, env={**CUPY, "TPARALLEL_PRODUCTS": "bfloat16"}, fresh=True)
def test_linear_layers_multiply_in_bfloat16_where_asked(comm, numpys):  # noqa: F811
    """float32 factors rounded to 8 bits, sums in float32; float64 stays exact; training follows."""
    import cupy

    from tparallel.compare.measure import measure
    from tparallel.products import product

    pytest.importorskip("ml_dtypes")
    a, b = (np.random.default_rng(n).normal(size=(40, 40)) for n in (0, 1))
    exact, size = a @ b, np.abs(a) @ np.abs(b)
    found = product(cupy.asarray(a.astype("f4")), cupy.asarray(b.astype("f4"))).get()
    assert found.dtype == np.float32
    assert 1e-4 < (np.abs(found - exact) / size).max() < 3 * 2.0**-9
    assert np.abs(product(cupy.asarray(a), cupy.asarray(b)).get() - exact).max() < 1e-13
    _, losses = pickle.loads(numpys.read_bytes())
    train = replace(TRAIN, dtype="bfloat16")
    ranks = measure(MODEL, train, Layout(tp=2), comm, rows)
    if ranks:
        error = np.abs(np.array(ranks[0].losses) / losses - 1).max()
        assert 1e-6 < error < 2e-2
