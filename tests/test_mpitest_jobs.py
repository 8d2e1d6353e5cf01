"""One job runs many tests: it is kept while they pass, and no test suffers from another."""

import re

import pytest
from inner_pytest import Inner, report

CASES = """
import atexit, os, sys, threading, time
from pathlib import Path
import numpy as np
import pytest
from mpi4py import MPI
from mpijob import wait
from mpitest import mpi, pool, ranks_end_well
from tparallel import launch

SEEN = Path(__file__).parent

def write(comm):
    name = sys._getframe(1).f_code.co_name
    (SEEN / f"{name}-{comm.rank}").write_text(str(os.getpid()))
    print("said in", name)

@mpi(2)
def test_first(comm):
    write(comm)

@mpi(2)
def test_second(comm):
    write(comm)

def ticks():
    stat = [(Path("/proc") / p.read_text() / "stat").read_text() for p in SEEN.glob("*second-*")]
    return sum(int(n) for line in stat for n in line.rpartition(")")[2].split()[11:13])

def test_idle():
    before = ticks()
    time.sleep(1)
    assert ticks() - before <= 10

@mpi(2, fresh=True)
def test_fresh(comm):
    write(comm)
    os.environ["LEFT"] = "1"

@mpi(2, env={"MORE": "1"})
def test_variables(comm):
    write(comm)

@mpi(2)
def test_third(comm):
    assert "LEFT" not in os.environ and "MORE" not in os.environ
    write(comm)

@mpi(2)
@pytest.mark.parametrize("change", [
    "os.environ['LEFT'] = '1'",
    "os.chdir('/')",
    "threading.Thread(target=time.sleep, args=(9,)).start()",
    "launch.start.FLAGS = {}",
    "launch.Job.end = None",
    "comm.Isend(np.zeros(1), 1 - comm.rank, 7).Free()",
    "MPI.COMM_WORLD.Isend(np.zeros(1), 1 - comm.rank, 7).Free()",
], ids=["variable", "folder", "thread", "function", "method", "message", "world"])
def test_leaves(comm, change):
    assert launch.start.FLAGS and launch.Job.end and os.getcwd() != "/"
    assert "LEFT" not in os.environ and len(threading.enumerate()) == 1
    assert not comm.Iprobe() and not MPI.COMM_WORLD.Iprobe()
    comm.Barrier()
    exec(change)

@mpi(2)
def test_fails(comm):
    write(comm)
    assert comm.rank == 1

@mpi(2)
def test_after(comm):
    write(comm)

def test_ranks_are_gone():
    for file in SEEN.glob("test_after-*"):
        os.kill(int(file.read_text()), 9)
    assert wait(lambda: any(job.code() is not None for job in pool.waiting.values()), 20)

@mpi(2)
def test_next(comm):
    write(comm)

@mpi(3)
def test_ends_badly(comm):
    if comm.rank == 1:
        atexit.register(os._exit, 3)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(what pytest printed, {test: the processes of its two ranks})"""
    folder = tmp_path_factory.mktemp("inner")
    inner = Inner(folder, CASES)
    out = inner.end()
    assert not inner.left()
    tests = {file.name.split("-")[0] for file in folder.glob("test_*-*")}
    return out, {t: [int((folder / f"{t}-{r}").read_text()) for r in (0, 1)] for t in tests}


@pytest.mark.smoke
def test_tests_that_pass_share_a_job_and_the_others_have_their_own(run):
    """The same processes where size and variables are the same, and nothing has failed."""
    out, ranks = run
    assert ranks["test_first"] == ranks["test_second"] == ranks["test_third"]
    jobs = [ranks[f"test_{name}"] for name in ("first", "fresh", "variables", "fails", "next")]
    assert len({pid for job in jobs for pid in job}) == 10
    assert ranks["test_after"] not in jobs
    assert "8 failed, 10 passed" in out and "1 error" in out, out


@pytest.mark.smoke
@pytest.mark.parametrize("what, said", [
    ("variable", r"has changed the environment; restore it, or use @mpi\(..., fresh=True\)"),
    ("folder", "has changed the folder;"),
    ("thread", "has changed the threads;"),
    ("function", "has changed tparallel.launch.start.FLAGS;"),
    ("method", "has changed tparallel.launch.start.Job.end;"),
    ("message", r"leaves a message from rank \d with tag 7"),
    ("world", r"leaves a message from rank \d with tag 7"),
])  # fmt: skip
def test_what_a_test_leaves_behind_fails_it_and_no_later_test_sees_it(run, what, said):
    """By name; each case looks first whether the one before it is to be seen."""
    assert re.search(said, report(run[0], f"test_leaves[{what}-2ranks]"))


def test_a_report_has_what_was_written_in_that_test_alone(run):
    """The job's earlier tests wrote too."""
    text = report(run[0], "test_fails[2ranks]")
    assert {*re.findall(r"said in (\w+)", text)} == {"test_fails"}, text


def test_ranks_that_wait_for_a_test_cost_no_time(run):
    """Two of them, one second: at most a tenth of it."""
    assert "test_idle" not in run[0]


def test_a_job_that_does_not_end_well_is_told_at_the_end(run):
    """One was killed while it waited, one crashes after its last test: neither is silent."""
    out = run[0]
    assert "2 ranks ended with exit code" in out and "['test_after'], the last of which" in out
    assert "3 ranks ended with exit code" in out and "['test_ends_badly']" in out
    assert "test_next" not in out
