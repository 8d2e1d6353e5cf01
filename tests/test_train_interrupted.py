"""``tparallel train`` interrupted or killed: an orderly end, and the log of what was done."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest
from train_jobs import TINY, TRAIN, records, start, wait_for_lines

from tparallel import launch
from tparallel.launch.start import RANK_VARIABLES, processes


def running(file: Path) -> list[str]:
    """The processes that name this file on their command line (Linux)."""
    lines = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            lines.append(entry.read_bytes().decode(errors="replace"))
    return [line for line in lines if str(file) in line]


@pytest.mark.smoke
@pytest.mark.parametrize("layout", [["--ranks", "4", "--zero", "1"], ["--tp", "2"], []])
def test_ctrl_c_ends_the_run_after_a_step_with_a_complete_log(tmp_path, layout):
    """SIGINT to ``tparallel train`` with 4 ranks, 2, or alone: exit code 130, no traceback, no
    process left, and a log whose every line is whole and whose last step was announced."""
    file = tmp_path / "log"
    process = start(*TRAIN, *TINY, *layout, "--steps", "100000", "--log", str(file))
    wait_for_lines(file, 4, process)
    assert running(file)
    process.send_signal(signal.SIGINT)
    out = process.communicate(timeout=20)[0]
    assert process.returncode == 130, out
    steps = [line["step"] for line in records(file)[1:]]
    assert steps == list(range(1, len(steps) + 1))
    assert f"ended after step {steps[-1]}" in out and "Traceback" not in out
    assert not running(file)


def test_ctrl_c_to_the_launcher_ends_the_run_too(tmp_path):
    """SIGINT to MPICH's or Intel's mpiexec reaches the ranks: the same orderly end.  (Open MPI's
    ends the ranks by itself; the log is then complete to the last step that was finished.)"""
    file = tmp_path / "log"
    line, env = launch.command(4, [*TRAIN, *TINY, "--steps", "100000", "--log", str(file)])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(line, env=env, **pipes)
    wait_for_lines(file, 4, process)
    process.send_signal(signal.SIGINT)
    out = process.communicate(timeout=20)[0]
    steps = [line["step"] for line in records(file)[1:]]
    assert steps == list(range(1, len(steps) + 1))
    assert process.returncode != 0 and "Traceback" not in out
    if launch.installed().name != "openmpi":
        assert process.returncode == 130 and f"ended after step {steps[-1]}" in out, out


def test_it_is_enough_to_ask_one_rank_to_stop(tmp_path):
    """A signal that reaches one rank alone ends both, after the same step, with 130."""
    file = tmp_path / "log"
    argv = [*TRAIN, *TINY, "--steps", "100000", "--log", str(file)]
    with open(tmp_path / "out", "wb") as out:
        job = launch.Job(2, argv, env={"TEST_RUN": str(file)}, stdout=out, stderr=out)
        try:
            wait_for_lines(file, 4, job.process)
            os.kill(processes(f"TEST_RUN={file}", *RANK_VARIABLES)[0], signal.SIGINT)
            assert job.process.wait(timeout=20) == 130
        finally:
            job.end()
    last = records(file)[-1]["step"]
    assert f"ended after step {last}" in (tmp_path / "out").read_text()


def test_a_killed_run_leaves_the_lines_of_all_finished_steps(tmp_path):
    """kill -9: no handler runs, and the log has every step up to then, written one by one."""
    file = tmp_path / "log"
    process = start(*TRAIN, "--steps", "1000", "--log", str(file))
    wait_for_lines(file, 2, process)
    process.kill()
    process.wait()
    steps = [line["step"] for line in records(file)[1:]]
    assert 1 <= len(steps) < 20 and steps == list(range(1, len(steps) + 1))
