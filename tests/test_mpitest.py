"""The harness itself: every way in which a test on ranks can fail is told; nothing is left."""

import re
import time

import pytest
from inner_pytest import Inner, report

from tparallel import launch

# The tests that the harness is tried on; # A, # B mark lines that the reports must name.
CASES = """
import ctypes, os, sys, time
import numpy as np
import pytest
from mpitest import mpi

@pytest.mark.parametrize("value", [(1, "two"), {"three": [4.5, None]}])
@mpi(2, 3)
@pytest.mark.skipif(False, reason="never")
def test_values(comm, value, tmp_path):
    assert comm.size in (2, 3) and value in [(1, "two"), {"three": [4.5, None]}]
    (tmp_path / str(comm.rank)).touch()
    comm.Barrier()
    assert len(list(tmp_path.iterdir())) == comm.size

@mpi(2, timeout=40)
def test_one_rank_asserts(comm):
    value = [comm.rank, 2]
    comm.Barrier()
    if comm.rank == 1:
        time.sleep(0.5)
        assert value[0] == 5, "rank 1 disagrees"
    comm.Barrier()  # A

@mpi(2, timeout=2)
def test_deadlock(comm):
    if comm.rank == 0:
        comm.Barrier()  # A
    else:
        comm.Recv(np.zeros(1), source=0, tag=77)  # B

@mpi(2, timeout=2)
def test_left_behind(comm):
    if comm.rank == 1:
        comm.Recv(np.zeros(1), source=0)  # A

@mpi(2, timeout=20)
@pytest.mark.parametrize("end", [
    "ctypes.string_at(0)", "sys.exit(0)", "os._exit(0)", "raise KeyboardInterrupt"
], ids=["crash", "exit", "quiet", "interrupt"])
def test_ends(comm, end):
    if comm.rank == 1:
        exec(end)
    comm.Barrier()

@mpi(2)
def test_skip(comm):
    pytest.skip("no luck")

@mpi(2)
@pytest.mark.parametrize("thing", [object()])
def test_not_a_literal(comm, thing):
    pass
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> str:
    inner = Inner(tmp_path_factory.mktemp("inner"), CASES)
    text = inner.end()
    assert not inner.left()
    return text


def place(name: str, mark: str) -> str:
    """As a stack shows the marked line of a case."""
    lines = CASES[: CASES.index(f"# {mark}", CASES.index(f"def {name}("))].count("\n") + 1
    return f"line {lines} in {name}"


@pytest.mark.smoke
def test_a_test_runs_on_every_number_of_ranks_with_every_parameter(out):
    """Two sizes times two values; marks above and below the decorator; paths arrive."""
    assert "test_values" not in out and re.search(r"\b4 passed", out), out


@pytest.mark.smoke
def test_an_assert_on_one_rank_is_told_with_where_the_others_wait(out):
    """Rank 1 shows its values; rank 0, inside MPI, its line; nobody waits for the timeout."""
    text = report(out, "test_one_rank_asserts[2ranks]")
    assert "on 2 ranks: failed" in text and "--- rank 1: failed" in text
    assert "assert 1 == 5" in text and "rank 1 disagrees" in text
    waits = text[text.index("--- rank 0: did not finish") : text.index("--- rank 1")]
    assert place("test_one_rank_asserts", "A") in waits, text


@pytest.mark.smoke
def test_a_deadlock_ends_with_the_stack_of_every_rank(out):
    """One rank in Barrier, one in Recv."""
    text = report(out, "test_deadlock[2ranks]")
    assert "test_deadlock on 2 ranks: hung for 2 s" in text
    rank_0, rank_1 = text.split("--- rank 1")
    assert place("test_deadlock", "A") in rank_0 and place("test_deadlock", "B") in rank_1, text


def test_a_rank_that_returns_while_another_waits_fails_the_test(out):
    """At the end there is a barrier: everybody must come."""
    text = report(out, "test_left_behind[2ranks]")
    assert "hung for 2 s" in text and "--- rank 0: did not finish" in text
    assert place("test_left_behind", "A") in text, text


@pytest.mark.smoke
@pytest.mark.parametrize("how, shown", [
    ("crash", "Segmentation fault"),
    ("exit", "--- rank 1: failed"),
    ("quiet", "--- rank 1: did not finish"),
    ("interrupt", "KeyboardInterrupt"),
])  # fmt: skip
def test_a_rank_that_ends_by_itself_fails_the_test(out, how, shown):
    """A crash, and the exits that look like success."""
    text = report(out, f"test_ends[{how}-2ranks]")
    assert shown in text and "hung" not in text, text


def test_a_skip_on_every_rank_is_a_skip(out):
    """With the reason that the ranks gave."""
    assert re.search(r"SKIPPED \[1\].*no luck", out) and "1 skipped" in out


def test_an_argument_that_is_no_literal_is_refused(out):
    """Nothing is pickled: what a rank gets can be read in a report."""
    text = report(out, "test_not_a_literal[thing0-2ranks]")
    assert "an argument of an @mpi test is a literal or a path: thing=<object" in text


def test_an_error_before_the_test_starts_is_told(tmp_path):
    """A rank that cannot import the test module has a log, too."""
    inner = Inner(tmp_path, '''
import os
from mpitest import mpi
if "MPITEST_FOLDER" in os.environ:
    import no_such_module

@mpi(2)
def test_import(comm):
    pass
''')  # fmt: skip
    assert "No module named 'no_such_module'" in inner.end()


@pytest.mark.smoke
def test_no_process_outlives_a_pytest_that_is_killed(tmp_path):
    """kill -9 of pytest in the middle of a deadlock."""
    inner = Inner(tmp_path, f'''
from mpitest import mpi

@mpi(3, timeout=60)
def test_deadlock(comm):
    comm.Barrier()
    open({str(tmp_path / "ready")!r}, "w").close()
    comm.recv(source=(comm.rank + 1) % comm.size)
''')  # fmt: skip
    end = time.monotonic() + 30
    while not (tmp_path / "ready").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert len(launch.processes(inner.mark)) >= 5  # pytest, mpiexec, three ranks
    inner.process.kill()
    assert not inner.left()
