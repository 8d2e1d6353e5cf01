"""Compiled kernels on disk: many processes at once, a second start, and no place to keep them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba")

ROOT = Path(__file__).resolve().parent.parent

# Adds rows in the types named; prints how many kernels were compiled and how many loaded.
ADD = """
import os, sys, time
from pathlib import Path
import numpy as np
from numba.core.caching import IndexDataCacheFile
from tparallel.kernels import compiled

def save_together(*result):
    (meeting / str(os.getpid())).touch()
    end = time.monotonic() + 30
    while len([*meeting.iterdir()]) < together and time.monotonic() < end:
        time.sleep(0.005)
    save_overload(*result)

def save_index_slowly(self, overloads):
    time.sleep(0.2 + 0.2 * (types[0] == "float64"))
    save_index(self, overloads)
    time.sleep(0.4 * (types[0] == "float32"))

meeting, together, types = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
if together:
    cache = compiled.add_rows._cache
    save_overload, cache.save_overload = cache.save_overload, save_together
    save_index, IndexDataCacheFile._save_index = IndexDataCacheFile._save_index, save_index_slowly
for dtype in types:
    table = np.ones((3, 2), dtype)
    compiled.add_rows(table, np.array([2, 0, 2]), np.full((3, 2), 0.5, dtype))
    assert table.tolist() == [[1.5, 1.5], [1, 1], [2, 2]] and table.dtype == dtype
stats = compiled.add_rows.stats
print(sum(stats.cache_misses.values()), sum(stats.cache_hits.values()))
"""


def start(folder: Path, *types: str, together: int = 0, **env: str) -> subprocess.Popen:
    line = [sys.executable, "-c", ADD, str(folder), str(together), *types]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(line, cwd=folder, env={**os.environ, **env}, **pipes)


def test_processes_that_start_at_once_on_an_empty_cache_leave_it_whole(tmp_path):
    """Six of two types, which keep what they compiled at the same moment, held up between index
    and code; what they leave serves both types at the next start, with nothing compiled."""
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    env = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    six = [start(meeting, t, together=6, **env) for t in ("float32", "float64") * 3]
    for process in six:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0 and not err, err
    again = start(tmp_path, "float32", "float64", **env)
    out, err = again.communicate(timeout=60)
    assert again.returncode == 0 and not err, err
    assert out == "0 2\n"


def test_without_a_place_that_can_be_written_kernels_are_compiled_in_memory(tmp_path):
    """A read-only installation and no home: the right sums, and not a word."""
    without = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "tparallel", tmp_path / "tparallel", ignore=without)
    (tmp_path / "tparallel/kernels/__pycache__").touch()  # no folder, which stops root too
    nowhere = {"HOME": os.devnull, "XDG_CACHE_HOME": os.devnull, "NUMBA_CACHE_DIR": ""}
    process = start(tmp_path, "float32", "float64", **nowhere)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and not err, err
    assert out == "2 0\n"
    assert not [*tmp_path.rglob("*.nbi")]


def test_a_damaged_file_is_as_if_it_were_not_there(tmp_path):
    """What a machine leaves that lost its power: empty files."""
    env = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    for end in ("*.nbc", "*.nbi"):
        assert start(tmp_path, "float32", "float64", **env).wait(60) == 0
        damaged = [*(tmp_path / "cache").rglob(end)]
        assert damaged
        for file in damaged:
            file.write_bytes(b"")
    process = start(tmp_path, "float32", "float64", **env)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and not err, err
