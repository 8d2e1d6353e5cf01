"""``scripts/bench pipeline`` and ``bubble``: that they run; on a quiet machine, what they say."""

import json
import os
from pathlib import Path

import pytest
from mpitest import mpirun

BENCH = str(Path(__file__).resolve().parent.parent / "scripts" / "bench_lib")
KEYS = {"bench", "size", "peer", "ours", "theirs", "unit", "ratio", "kernels", "products", "mpi"}


def rows(path, *argv, timeout=120):
    ended = mpirun(2, BENCH, *argv, "--json", str(path), timeout=timeout)
    assert ended.code == 0, ended.out
    return json.loads(path.read_text())["rows"]


def test_the_bubble_bench_writes_a_row_for_every_schedule_and_size(tmp_path):
    """A tiny run: nothing is claimed of its figures, but each is the bubble of a real run."""
    options = ["--microbatches", "2", "--schedules", "1f1b,zb-h1"]
    found = rows(tmp_path / "b.json", "bubble", "--sizes", "tiny", "--rounds", "2", *options)
    assert [row["bench"] for row in found] == ["bubble 1f1b M=2", "bubble zb-h1 M=2"]
    assert all(
        row.keys() == KEYS and 0 < row["ours"] < 1 and 0 < row["theirs"] < 1 for row in found
    )


@pytest.mark.oracle
def test_the_pipeline_bench_compares_with_pytorch(tmp_path):
    """A tiny run of two rounds, both sides alternated in one job."""
    found = rows(tmp_path / "p.json", "pipeline", "--sizes", "tiny", "--rounds", "2")
    assert [row["bench"] for row in found] == ["pipeline 1f1b", "pipeline zb-h1"]
    assert all(row.keys() == KEYS and row["ours"] > 0 and row["theirs"] > 0 for row in found)


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two stages need two cores")
def test_the_measured_bubble_is_the_predicted_one(tmp_path):
    """Size S, 20 steps, M = 2, 4, 8, 16, four schedules: within 15 % or 0.02 of the simulator that
    is fed with the measured times.  For a quiet machine: another program's work is a bubble too."""
    found = rows(tmp_path / "b.json", "bubble", timeout=600)
    assert len(found) == 16
    off = {row["bench"]: (row["ours"], row["theirs"]) for row in found if row["unit"] != "right"}
    assert not off
