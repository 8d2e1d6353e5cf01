"""A job that fails ends as one, says why once, and leaves nothing behind."""

import re
import socket
import subprocess
import time
from pathlib import Path

import pytest
from mpitest import mpirun

from tparallel import launch

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
