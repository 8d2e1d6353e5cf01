"""scripts/check_gpu, rehearsed on the stand-in: it runs to its end and writes what it found."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def check_gpu(path, *argv, rehearse=True):
    line = [
        "sh",
        str(ROOT / "scripts/check_gpu"),
        *(["--rehearse"] * rehearse),
        "--json",
        str(path),
    ]
    env = {**os.environ, "PYTHON": sys.executable}
    ended = subprocess.run(
        [*line, *argv], env=env, capture_output=True, text=True, check=False, timeout=300
    )
    return ended, json.loads(path.read_text()) if path.exists() else None


def test_transports_and_speed_are_measured_and_written_down(tmp_path):
    """Device, driver, versions, date; each way right, with a rate; tokens/s and MFU of each way
    to compute; torch's absence is said."""
    ended, found = check_gpu(tmp_path / "gpu.json", "--only", "transports", "bench")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert found["rehearsed"] and not (tmp_path / "gpu.json.new").exists()
    assert "stand-in" in found["facts"]["device"] and found["facts"]["date"].startswith("2")
    assert {"driver", "runtime", "cupy", "mpi", "packages"} <= set(found["facts"])
    ways = ("staged", "staged, ring", "ipc", "direct", "direct, ring")
    assert all(min(found["transports"][way]["rates"].values()) > 0 for way in ways)
    bench = found["bench"]
    assert bench["peak_tflops"] > 0 and bench["torch"] in ("not installed", "compared")
    for program in ("tparallel", "tparallel, blocks", "tparallel, float32"):
        found = bench["tiny"][program]
        assert found["tokens_per_second"] > 0 and found["mfu"] and found["parts"]["gigabytes"] > 0


@pytest.mark.oracle
def test_pytorch_s_programs_take_their_turns(tmp_path):
    """On the processor: eager and compiled, with autocast, clipping and fused AdamW."""
    ended, found = check_gpu(tmp_path / "gpu.json", "--only", "bench")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for program in ("torch eager", "torch compiled"):
        assert found["bench"]["tiny"][program].get("tokens_per_second", 0) > 0, ended.stdout


@pytest.mark.slow
def test_the_gpu_tests_pass_on_the_stand_in(tmp_path):
    """pytest -m gpu, as check_gpu runs it."""
    ended, found = check_gpu(tmp_path / "gpu.json", "--only", "tests")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert " passed" in found["tests"]["summary"] and "failed" not in found["tests"]["summary"]


def test_without_a_gpu_it_says_so_and_ends_with_2(tmp_path):
    """Nothing is written, nothing is measured on something else."""
    try:
        import cupy  # noqa: F401

        pytest.skip("there is CuPy here")
    except ImportError:
        ended, found = check_gpu(tmp_path / "gpu.json", rehearse=False)
    assert ended.returncode == 2 and found is None
    assert "check_gpu needs CuPy and a GPU that answers" in ended.stderr
