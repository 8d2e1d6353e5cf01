"""``scripts/bench zero``: that it runs, and, on a quiet machine, what it says."""

import json

import pytest
from test_bench_pipeline import BENCH, KEYS, mpirun


@pytest.mark.oracle
def test_the_bench_writes_a_row_for_each_peer(tmp_path):
    """A tiny run: nothing is claimed of its figures."""
    options = ["--sizes", "tiny", "--rounds", "2", "--json", str(tmp_path / "z.json")]
    ended = mpirun(2, BENCH, "zero", *options, timeout=120)
    assert ended.code == 0, ended.out
    rows = json.loads((tmp_path / "z.json").read_text())["rows"]
    assert [(row["bench"], row["peer"]) for row in rows] == [
        ("zero 1", "torch-ddp"),
        ("zero 3", "torch-fsdp2"),
    ]
    assert all(row.keys() == KEYS and min(row["ours"], row["theirs"]) > 0 for row in rows)


@pytest.mark.slow
@pytest.mark.oracle
def test_zero_is_ahead_of_pytorchs_data_parallelism(tmp_path):
    """Tokens per second at size S on two cores: ZeRO-1 1.05 times DDP's, ZeRO-3 1.25 FSDP2's."""
    options = ["--sizes", "S", "--json", str(tmp_path / "z.json")]
    env = {"TPARALLEL_KERNELS": ""}  # those that a user gets, not the plain ones of the tests
    ended = mpirun(2, BENCH, "zero", *options, timeout=400, env=env)
    assert ended.code == 0, ended.out
    ddp, fsdp = json.loads((tmp_path / "z.json").read_text())["rows"]
    assert ddp["ratio"] >= 1.05 and fsdp["ratio"] >= 1.25, (ddp, fsdp)
