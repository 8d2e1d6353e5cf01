"""The stand-in itself: what CuPy refuses it refuses, and what goes wrong by luck always does."""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from mpitest import mpi
from standin_cupy import CUPY, FOLDER


@mpi(1, env=CUPY, fresh=True)
def test_nothing_becomes_a_numpy_array_by_accident(comm):
    """np.asarray, NumPy's functions and operators, NumPy operands and indices, assignment."""
    import cupy as cp

    host, x = np.ones(3), cp.arange(3.0)
    for wrong in (
        lambda: np.asarray(x),
        lambda: np.exp(x),
        lambda: np.sum(x),
        lambda: np.add(host, x),
        lambda: host + x,
        lambda: x + host,
        lambda: x.__iadd__(host),
        lambda: host @ x,
        lambda: cp.exp(host),
        lambda: cp.exp(x, out=host),
        lambda: cp.concatenate([x, host]),
        lambda: cp.add.at(x, cp.arange(3), host),
        lambda: x[np.array([0])],
        lambda: cp.asarray([None]),
    ):
        with pytest.raises((TypeError, ValueError)):
            wrong()
    with pytest.raises(ValueError, match="cannot be used for fill"):
        x[...] = host
    assert float(x[1]) == 1.0 and (x + np.float32(1)).get().tolist() == [1, 2, 3]


@mpi(1, env=CUPY, fresh=True)
def test_what_cupy_lacks_is_missing(comm):
    """Names, ufunc.at of most functions, batched products in bfloat16."""
    import cupy as cp

    halves = cp.ones((2, 3, 3), np.float32).astype(_bfloat16())
    assert (halves[0] @ halves[0]).dtype.name == "bfloat16"
    with pytest.raises(TypeError, match="no batched product of bfloat16"):
        halves @ halves
    with pytest.raises(NotImplementedError):
        cp.multiply.at(halves, 0, 1)
    for name in ("errstate", "lib", "char", "nditer", "frompyfunc"):
        assert not hasattr(cp, name)


@mpi(2, env=CUPY, fresh=True)
def test_mpi_is_not_given_an_array_whose_kernels_may_still_run(comm):
    """By DLPack and by the CUDA array interface; after a wait MPI reads device memory itself."""
    import cupy as cp

    x, total = cp.arange(4.0), cp.empty(4)
    with pytest.raises(RuntimeError, match="synchronize"):
        comm.Allreduce(x, total)
    with pytest.raises(RuntimeError, match="synchronize"):
        x.__cuda_array_interface__  # noqa: B018
    cp.cuda.get_current_stream().synchronize()
    comm.Allreduce(x, total)
    assert total.get().tolist() == [0, 2, 4, 6]


@mpi(1, env=CUPY, fresh=True)
def test_pinned_memory_is_read_and_written_when_the_host_waits(comm):
    """A buffer that is used before the wait holds old numbers; one that is reused is an error."""
    import cupy as cp
    import cupyx

    x, buffer = cp.ones(3), cupyx.zeros_pinned(3)
    x.get(out=buffer, blocking=False)
    assert buffer.tolist() == [0, 0, 0]
    cp.cuda.get_current_stream().synchronize()
    assert buffer.tolist() == [1, 1, 1]
    x.set(buffer)
    buffer[0] = 9
    with pytest.raises(RuntimeError, match="pinned memory was changed"):
        cp.cuda.get_current_stream().synchronize()


@mpi(1, env=CUPY, fresh=True)
def test_memory_is_counted_while_it_lives(comm):
    """Owners count, views do not; hooks see both ends; the limit is an error with sizes."""
    import cupy as cp

    class Seen(cp.cuda.MemoryHook):
        name, now = "seen", 0

        def malloc_postprocess(self, **k):
            self.now += k["mem_size"]

        def free_postprocess(self, **k):
            self.now -= k["mem_size"]

    pool = cp.get_default_memory_pool()
    with Seen() as seen:
        before = pool.used_bytes()
        x = cp.zeros(1000)
        views = x[3:], x.reshape(10, 100).T, x.view(np.uint8)[5]
        assert seen.now == pool.used_bytes() - before == 8192
        assert all(v.base is x for v in views)
        del x
        assert seen.now == 8192
        del views
        assert seen.now == 0
    pool.set_limit(size=pool.used_bytes() + 1024)
    with pytest.raises(cp.cuda.memory.OutOfMemoryError, match="allocating 8,192 bytes"):
        cp.zeros(1000)


@mpi(1, env=CUPY, fresh=True)
def test_the_hash_of_dropout_is_the_same_64_bits(comm):
    """Unsigned arithmetic with Python integers beyond 2⁶³, as CuPy does it since version 14."""
    from tparallel.serial.dropout import mix, positions

    at = positions((5, 0), (2, 3), (2**20,))
    assert at.dtype == np.uint64
    assert [[int(n) for n in row] for row in mix(at).get()] == [
        [mix(5 * 2**20 + c + r * 2**20) for c in range(3)] for r in range(2)
    ]


SHUFFLES = """
extern "C" __global__ void sum(const float* x, float* y, int n, int split) {
  __shared__ float parts[2];
  float total = threadIdx.x < n ? x[blockIdx.x * n + threadIdx.x] : 0;
  for (int step = 16; step; step /= 2) total += __shfl_xor_sync(0xffffffffu, total, step);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = total;
  if (threadIdx.x < split) __shfl_sync(0xffffffffu, total, 0);  // and the others, elsewhere:
  else __syncthreads();
  if (threadIdx.x == 0) y[blockIdx.x] = parts[0] + parts[1];
}
"""


@mpi(1, env=CUPY)
def test_the_threads_of_a_block_meet_in_a_kernel_written_by_hand(comm):
    """Shuffles, shared memory and barriers give the sum; those who wait for ever, and arguments
    of another size, are errors."""
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        return
    import cupy as cp

    kernel, x, y = cp.RawKernel(SHUFFLES, "sum"), cp.arange(150, dtype="f4"), cp.zeros(3, "f4")
    n, split = np.int32(50), np.int32(0)
    kernel((3,), (64,), (x, y, n, split))
    assert y.get().tolist() == [sum(range(k, k + 50)) for k in (0, 50, 100)]
    with pytest.raises(RuntimeError, match="wait for one another"):
        kernel((3,), (64,), (x, y, n, np.int32(10)))
    for wrong in ((x, y, 50, split), (x, y, n)):
        with pytest.raises(RuntimeError, match="not of the size of its parameter"):
            kernel((3,), (64,), wrong)
    with pytest.raises(TypeError, match=r"pass a cupy\.ndarray"):
        kernel((3,), (64,), (x.get(), y, n, split))


@mpi(1, env=CUPY)
def test_cudnn_runs_what_has_been_planned_and_has_kernels_for_some_heads(comm):
    """A head of 12 numbers has none, and the error says how to go on without."""
    _bfloat16()
    import cudnn

    from tparallel.errors import ConfigError
    from tparallel.kernels import flash

    heads = [flash.Lies((2, 4, 5, 12), (240, 12, 48, 1))] * 4
    log_sum = flash.Lies((2, 4, 5, 1), (20, 5, 1, 1))
    arrays = tuple(zip(("q", "k", "v", "o", "stats"), (*heads, log_sum)))
    with pytest.raises(ConfigError, match=r"no kernel for .* Use TPARALLEL_ATTENTION=blocks"):
        flash._forward_plan(arrays)
    assert flash.takes(2, 64, 64) and not flash.takes(2, 64, 12) and not flash.takes(4, 64, 64)
    graph = cudnn.pygraph(compute_data_type=cudnn.data_type.FLOAT, handle=cudnn.create_handle())
    with pytest.raises(AssertionError):
        graph.execute({}, 1, handle=graph)


def test_every_name_of_the_stand_in_is_one_of_cupys():
    """Where CuPy is installed, a GPU or not: nothing here that there is not."""
    if not any(_installed(f"cupy-cuda{n}x") for n in (12, 13)):
        pytest.skip("CuPy is not installed")
    code = "import cupy, cupyx; print(*dir(cupy), *dir(cupyx), *dir(cupy.ndarray), *dir(cupy.cuda))"
    real, ours = (
        set(subprocess.check_output([sys.executable, "-c", code], env=env, text=True).split())
        for env in (dict(os.environ), {**os.environ, "PYTHONPATH": str(FOLDER)})
    )
    real.add("cublas")  # which CuPy loads when it is asked for
    assert {name for name in ours - real if not name.startswith("_")} == set()


def _installed(package: str) -> bool:
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


def _bfloat16():
    return pytest.importorskip("ml_dtypes").bfloat16
