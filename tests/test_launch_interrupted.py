"""A job that is interrupted or killed ends on every rank and leaves nothing behind."""

import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tparallel import launch

JOBS = str(Path(__file__).with_name("jobs.py"))


class Running:
    """``run_ranks`` in a process of its own, as a user runs the command."""

    def __init__(self, name: str) -> None:
        self.mark = f"TEST_LAUNCH={secrets.token_hex(8)}"
        run = f"import sys, tparallel.launch as l; sys.exit(l.run_ranks(3, {[JOBS, name]}))"
        env = {**os.environ, **dict([self.mark.split("=")])}
        self.process = subprocess.Popen(
            [sys.executable, "-c", run], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.memory: set[str] = set()
        for _ in range(3):
            line = ""
            while "ready" not in line:
                line = self.process.stdout.readline().decode()
                assert self.process.poll() is None
            self.memory |= set(line.split()[1:])

    def end(self) -> tuple[int, str]:
        out, _ = self.process.communicate(timeout=20)
        return self.process.returncode, out.decode()

    def left(self) -> list[int]:
        """The job's processes that are alive some seconds later."""
        end = time.monotonic() + 10
        while (pids := launch.processes(self.mark)) and time.monotonic() < end:
            time.sleep(0.05)
        return pids


@pytest.fixture
def start() -> Iterator[Callable[[str], Running]]:
    jobs: list[Running] = []
    yield lambda name: jobs.append(Running(name)) or jobs[-1]
    for job in jobs:
        for pid in launch.processes(job.mark):  # of a test that failed
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("name", ["computes", "waits_inside_mpi"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_job_ends_on_every_rank_and_says_so_once(start, name, number):
    """Ctrl-C or SIGTERM: one line, 128 + signal, no process left."""
    job = start(name)
    job.process.send_signal(number)
    code, out = job.end()
    assert code == 128 + number and not job.left()
    assert not [path for path in job.memory if Path(path).exists()]
    assert out.count("interrupted in step 120") == 1 and "Traceback" not in out, out


def test_a_loop_that_is_asked_to_stop_ends_after_the_same_step_on_every_rank(start):
    """The ranks wait for each other inside MPI when the signal comes, and finish the step."""
    job = start("stops_after_a_step")
    time.sleep(0.3)
    job.process.send_signal(signal.SIGINT)
    code, out = job.end()
    assert code == 130 and not job.left()
    stops = re.findall(r"stopped after step (\d+)", out)
    assert len(stops) == 3 and len(set(stops)) == 1, out


@pytest.mark.smoke
def test_no_rank_outlives_a_command_that_is_killed(start):
    """kill -9 cannot be caught: the kernel tells mpiexec, and the ranks."""
    job = start("waits_inside_mpi")
    assert len(launch.processes(job.mark)) >= 5  # the command, mpiexec, three ranks
    job.process.kill()
    assert not job.left()
