"""``tparallel compare``: what it writes and shows, and that it fails when it must."""

import argparse
import importlib.util
import json
import re

import pytest
from mpitest import mpi, mpirun

from tparallel.commands import compare as command
from tparallel.compare.verdict import failures
from tparallel.errors import ConfigError, DataError, LayoutError
from tparallel.layouts import for_ranks, labels

RUN = """
import argparse, sys
from tparallel.commands import compare
parser = argparse.ArgumentParser()
compare.add_arguments(parser)
sys.exit(compare.main(parser.parse_args()))
"""
FORGET = """
from tparallel.comm.axis import Axis
from tparallel.comm.pending import over
whole = Axis.start_all_reduce
def forgets_one_block(self, x, *, what, **more):
    return over(x) if what == "block.1 grads" else whole(self, x, what=what, **more)
Axis.start_all_reduce = forgets_one_block
"""


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """(the finished job, its folder) of the whole list on four ranks, small."""
    folder = tmp_path_factory.mktemp("compare") / "new" / "folder"
    env = {"TPARALLEL_KERNELS": ""}  # those that a user gets, not the plain ones of the tests
    return mpirun(4, "-c", RUN, "--quick", "--out", str(folder), timeout=180, env=env), folder


@pytest.fixture
def result(quick):
    return json.loads((quick[1] / "compare.json").read_text())


def row(result, name):
    return next(r for r in result["rows"] if r["name"] == name)


def test_every_layout_of_the_list_is_equal_to_serial(quick, result):
    """Exit code 0, and the numbers behind it: 1e-12 in float64, 1e-5 along the float32 curve."""
    job, _ = quick
    assert job.code == 0, job.out
    assert [r["name"] for r in result["rows"]] == labels(for_ranks(4))
    for r in result["rows"]:
        assert 0 < r["gradient_error"] <= 1e-12 and r["loss_error"] <= 1e-12
        assert r["loss_curve_error"] <= 1e-5
        assert r["worst_gradient"].startswith(("embed.", "block.", "head."))
        assert len(r["loss"]) == result["run"]["steps"] and r["loss"][-1] < r["loss"][0]
    assert failures(result) == []


def test_every_byte_is_what_the_closed_form_says(result):
    """States and wire to the letter of the promise; activations and gathered layers as well."""
    for r in result["rows"]:
        assert r["held_bytes"] == r["held_bytes_predicted"]
        assert r["wire_bytes"] == r["wire_bytes_predicted"]
        assert all(type(n) is int for v in r["wire_bytes"].values() for n in v)
    assert row(result, "serial")["wire_bytes"] == {"tp": [0], "pp": [0], "dp": [0]}
    assert sum(row(result, "pp=4 1f1b")["wire_bytes"]["pp"]) > 0


def test_compare_json_has_the_keys_that_were_promised(result):
    """One list entry per rank of the layout; null where there is no pipeline."""
    assert result["version"] == 1
    assert {"T", "D", "H", "K", "F", "V", "L", "parameters"} <= result["model"].keys()
    run = {"ranks", "steps", "dtype", "backend", "mpi", "seed", "data", "global_batch"}
    assert run | {"microbatches"} <= result["run"].keys()
    assert {"name", "size", "sha256"} <= result["run"]["data"].keys()
    for r in result["rows"]:
        layout = r["layout"]
        assert {"tp", "pp", "dp", "zero", "schedule", "microbatches"} <= layout.keys()
        n = layout["tp"] * layout["pp"] * layout["dp"]
        kinds = {"params", "grads", "optimizer", "activations_peak"}
        for key, parts in (("held_bytes", kinds), ("wire_bytes", {"tp", "pp", "dp"})):
            assert parts <= r[key].keys() and r[key].keys() == r[f"{key}_predicted"].keys()
            assert all(len(v) == n for v in r[key].values())
        assert len(r["wait_fraction"]) == n and all(0 <= w < 1 for w in r["wait_fraction"])
        tokens = result["run"]["global_batch"] * result["model"]["T"]
        assert r["tokens_per_second"] * r["step_seconds"] == pytest.approx(tokens)
        for bubble in (r["bubble_predicted"], r["bubble_measured"]):
            assert bubble is None if layout["pp"] == 1 else 0 < bubble < 1


def test_the_screen_shows_a_row_for_each_layout_and_three_sentences(quick):
    """In 100 columns, nothing cut off."""
    text = quick[0].out
    for name in labels(for_ranks(4)):
        assert re.search(rf"^{name} +\d+ +\de-1\d ", text, re.M), name
    lines = [line for line in text.splitlines() if not line.startswith("Written: ")]
    assert all(len(line) <= 100 and "…" not in line for line in lines)
    assert [text.count(f"\n{word}: ") for word in ("Equal", "Bytes", "Time")] == [1, 1, 1]


def test_both_files_are_written_and_named(quick):
    """Without matplotlib one file, and a line that says what the other one needs."""
    job, folder = quick
    drawn = importlib.util.find_spec("matplotlib") is not None
    assert sorted(f.name for f in folder.iterdir()) == ["compare.json", "compare.png"][: 1 + drawn]
    assert all(str(f) in job.out for f in folder.iterdir())
    assert drawn or "pip install matplotlib" in job.out


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs the extra plot")
def test_the_picture_is_drawn(quick):
    """A PNG, and its name on the screen."""
    assert (quick[1] / "compare.png").read_bytes()[:4] == b"\x89PNG"
    assert "compare.png" in quick[0].out


def test_a_forgotten_sum_is_named_and_ends_with_exit_code_1(tmp_path):
    """The dp reduction of one block's gradients is left out: layout, tensor and error are said."""
    layouts = ("--layouts", "serial; dp=2 zero=0; dp=2 zero=1")
    job = mpirun(2, "-c", FORGET + RUN, "--quick", *layouts, "--out", str(tmp_path), "--no-plot")
    assert job.code == 1, job.out
    assert re.search(r"^dp=2 zero=0: the gradient of block\.1\.\S+ differs .* by \d", job.out, re.M)
    assert "Not equal: 1 of 3 layouts" in job.out
    assert not re.search(r"^(serial|dp=2 zero=1): ", job.out, re.M)
    assert not (tmp_path / "compare.png").exists()


class Four:
    """A job of four ranks, as far as flags are concerned."""

    rank, size = 0, 4

    def allgather(self, x):
        return [x] * self.size

    def bcast(self, x):
        return x


def task(*argv):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command._task(parser.parse_args(argv), Four())[1]


def test_flags_choose_layouts_sizes_and_steps():
    """A size sets several letters, a letter overrides it, and what is not given keeps F = 4 D."""
    tiny = task("--quick", "--D", "64", "--steps", "9", "--layouts", "tp=4", "--add", "tp=2,pp=2")
    assert (tiny.model.D, tiny.model.F, tiny.model.T, tiny.train.steps) == (64, 256, 16, 9)
    assert list(tiny.layouts) == ["tp=4", "tp=2 pp=2 1f1b"]
    assert list(task("--add", "tp=2,dp=2,zero=2").layouts) == [
        *labels(for_ranks(4)),
        "tp=2 dp=2 zero=2",
    ]
    assert list(task("--add", "tp=4").layouts) == labels(for_ranks(4))  # it is there already


@pytest.mark.parametrize(
    "argv, error, said",
    [
        (["--steps", "2"], ConfigError, "steps = 2. Use --steps 3 or more"),
        (["--add", "tp=2,pp=2,dp=2"], LayoutError, "2 × 2 × 2 = 8, but mpirun started 4 ranks"),
        (["--layouts", "tp=3"], LayoutError, "'tp=3' is not in it"),
        (["--layouts", ""], LayoutError, "--layouts is empty"),
        (["--data", "no/such/file"], DataError, "no/such/file"),
        (["--T", "100000"], DataError, "T = 100000"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(argv, error, said):
    """Rule, values, way out; a pure function of the flags, so the same on every rank."""
    with pytest.raises(error, match=re.escape(said)):
        task(*argv)


def test_a_folder_that_cannot_be_written_is_refused_before_anything_runs(tmp_path):
    """Not after a minute of work."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--out must be a folder that can be written"):
        command._check_folder(tmp_path / "file" / "folder", Four())


@mpi(2)
def test_a_rank_that_waits_sleeps(comm):
    """Half a second behind a rank that works costs it less than a tenth of processor time."""
    import time

    from tparallel.compare.asleep import meet

    meet(comm)
    start = time.process_time()
    if comm.rank == 1:
        time.sleep(0.5)
    meet(comm, 1e-3)
    assert time.process_time() - start < 0.1
