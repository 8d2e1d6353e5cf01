"""``scripts/bench all``: what one part does to the others; and the rows of jobs with ranks."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_bench_pipeline import BENCH, KEYS

sys.path.insert(0, str(Path(BENCH).parent))

from bench_lib import every, show
from bench_lib.parts import TABLE, Part

from tparallel import launch

ROW = {
    "bench": "b",
    "size": "S",
    "peer": "p",
    "ours": 1.0,
    "theirs": 2.0,
    "unit": "u",
    "ratio": 0.5,
}
ROW |= {"kernels": "fast", "products": "array"}


def arguments(**given) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    every.add_arguments(parser)
    return argparse.Namespace(**vars(parser.parse_args([])) | {"json": None} | given)


def test_a_part_that_fails_costs_its_own_rows_alone(tmp_path, monkeypatch, capsys):
    """It is named at the end, with exit code 1; the file has what the others found, all along."""
    file, seen = tmp_path / "deep" / "b.json", []

    def run_part(part: Part) -> list[dict]:
        seen.append(json.loads(file.read_text()) if file.exists() else None)
        if part.bench == "bubble":
            raise every.PartFailed("exit code 7")
        return [{**ROW, "bench": part.bench}]

    monkeypatch.setattr(every, "run_part", run_part)
    args = arguments(benches="crowded,bubble,collectives", json=file)
    assert every.run(args) == 1
    assert [s and [row["bench"] for row in s["rows"]] for s in seen] == [
        None,
        ["crowded"],
        ["crowded"],
    ]
    assert seen[2]["failed"] == {"bubble S array": "exit code 7"}
    assert seen[1]["unfinished"] == ["bubble S array", "collectives array"]
    end = json.loads(file.read_text())
    assert [row["bench"] for row in end["rows"]] == ["crowded", "collectives"]
    assert end.keys() == {"machine", "failed", "rows"}
    said = capsys.readouterr()
    assert "[3/3] collectives" in said.out and "left" in said.out
    assert said.err == "failed: bubble S array: exit code 7\n"


def test_what_a_failed_part_said_last_is_shown():
    """Its exit code and its error."""
    with pytest.raises(every.PartFailed, match=r"^exit code 1\n(.*\n)*.*KeyError: 'nonsense'"):
        every.run_part(Part("collectives", "nonsense", "array", rounds=1, seconds=9))


def test_a_part_that_does_not_end_is_ended(monkeypatch):
    """With every process of it."""
    monkeypatch.setattr(every, "GRACE", 1.5)
    monkeypatch.setenv("BENCH_OF", "this test")
    with pytest.raises(every.PartFailed, match="did not end"):
        every.run_part(Part("collectives", "", "array", rounds=10**6, seconds=0))
    assert not launch.processes("BENCH_OF=this test")


def test_one_run_measures_scaling_and_crowding_without_pytorch(tmp_path):
    """Real jobs of two and of eight ranks; every row says its kernels, products and MPI."""
    file = tmp_path / "b.json"
    line = [sys.executable, BENCH, "all", "--quick", "--sizes", "tiny", "--json", str(file)]
    line += ["--benches", "scaling,crowded"]
    ended = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = json.loads(file.read_text())["rows"]
    found = {row["bench"] for row in rows}
    assert found >= {"scaling zero=1", "scaling tp=2", "crowded tp=4", "crowded tp=8"}
    assert all(row.keys() == KEYS and min(row["ours"], row["theirs"]) > 0 for row in rows)


def test_the_table_for_the_readme_has_the_ratios_of_both_products():
    """NumPy's first, MKL's in brackets; what was not measured is left out."""
    one = {**ROW, "bench": "single", "peer": "torch-eager", "size": "M", "ratio": 0.956}
    two = {**one, "products": "mkl", "ratio": 1.049}
    assert show.markdown([one, two]).splitlines()[2:] == [
        "| one process | PyTorch eager |  | 0.96 (1.05) |  |"
    ]


def test_every_part_of_the_table_is_a_bench_with_its_ranks():
    """And nothing that can be run alone is missing in ``all``."""
    from bench_lib.__main__ import BENCHES

    assert set(TABLE) == set(BENCHES)
