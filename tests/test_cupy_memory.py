"""Device memory: whose share, how full it was, and what is said when there is no more."""

import json

from mpitest import mpi, mpirun
from standin_cupy import CUPY, STAGED

SMALL = ["--L", "2", "--D", "32", "--H", "4", "--T", "16", "--steps", "2", "--ranks", "2"]


def test_a_full_device_is_an_error_that_says_who_what_and_the_ways_out(tmp_path):
    """The rank, what was asked for, the limit, what holds the memory; all ranks end, with 2."""
    limit = {**STAGED, "STANDIN_DEVICE_BYTES": "2500000"}
    job = mpirun(2, "-m", "tparallel", "train", *SMALL, "--dp", "2", env=limit)
    assert job.code == 2 and "Traceback" not in job.out, job.out
    words = (
        "OutOfMemoryError: ", " of 2 (dp ", "Out of memory allocating ", "limit set to",
        "parameters 0.2 MB", "gradients 0.2 MB", "optimizer state 0.3 MB",
        "--microbatches 2", "--recompute full", "--zero 1",
    )  # fmt: skip
    assert [word for word in words if word not in job.out] == [], job.out


@mpi(3, env={**CUPY, "STANDIN_DEVICES": "2", "STANDIN_DEVICE_BYTES": "1000000"}, fresh=True)
def test_a_node_s_ranks_take_its_gpus_in_turn_and_share_their_memory(comm):
    """Three ranks, two devices: 0 and 2 on the first, each with half of nine tenths; rank 1 has the
    second device alone, without a limit."""
    import cupy

    from tparallel.backend import device, use_local_device

    use_local_device(comm.rank, comm.size)
    assert cupy.cuda.Device().id == comm.rank % 2
    limit = cupy.get_default_memory_pool().get_limit()
    assert limit == (0 if comm.rank == 1 else 450_000)
    assert "a node's rank r takes GPU r mod 2" in device()


@mpi(1, env=CUPY, fresh=True)
def test_the_peak_of_the_pool_sees_temporary_arrays(comm):
    """What is there when the block begins, and the most that is there at once inside it."""
    import cupy

    from tparallel.compare.memory import pool_peak

    kept = cupy.zeros(1024, "uint8")
    with pool_peak() as peak:
        for size in (2048, 4096, 1024):
            kept + cupy.zeros(size, "uint8")[:1024]
    assert peak == [1024 + 4096 + 1024]


def test_the_comparison_runs_with_cupy_and_tells_the_peaks(tmp_path):
    """The same command with --backend cupy: equal, bytes as predicted, and the pool's peaks."""
    job = mpirun(
        2, "-m", "tparallel", "compare", "--backend", "cupy", "--quick", "--no-plot",
        "--layouts", "serial; dp=2 zero=3", "--steps", "3", "--out", str(tmp_path),
        env={**STAGED, "TPARALLEL_BACKEND": ""},
    )  # fmt: skip
    assert job.code == 0, job.out
    assert "transport: MPI is handed copies in pinned host memory (TPARALLEL_CUDA" in job.out
    assert "Device memory at its fullest" in job.out
    found = json.loads((tmp_path / "compare.json").read_text())
    assert found["run"]["backend"] == "cupy" and "stand-in" in found["run"]["device"]
    for row in found["rows"]:
        held = [sum(kinds) for kinds in zip(*row["held_bytes"].values())]
        assert all(peak > least for peak, least in zip(row["pool_peak_bytes"], held)), row["name"]


def test_a_backend_that_cannot_be_had_is_refused_once():
    """No GPU, an unknown name, what only a GPU can: one line on rank 0, exit code 2, also under a
    launcher."""
    none = {**CUPY, "TPARALLEL_BACKEND": "numpy", "STANDIN_DEVICES": "0"}
    half = {**none, "TPARALLEL_PRODUCTS": "bfloat16"}
    fused = {**none, "TPARALLEL_ATTENTION": "cudnn"}
    for ranks, name, env, words in (
        (1, "torch", none, "must be numpy or cupy"),
        (2, "cupy", none, "needs a GPU"),
        (1, "numpy", half, "bfloat16 with CuPy's"),
        (1, "numpy", fused, "chooses among a GPU's fast kernels"),
    ):
        job = mpirun(ranks, "-m", "tparallel", "train", "--backend", name, env=env)
        assert job.code == 2 and job.out.count("ConfigError") == 1 and words in job.out, job.out
