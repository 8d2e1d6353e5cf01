"""Messages between two ranks, and jobs that hang: they end in seconds, and say why."""

import re

import pytest
from mpitest import mpirun

PROGRAM = """
import sys
import numpy as np
from mpi4py import MPI
from tparallel.comm.mesh import Mesh
from tparallel.config import Layout

case = sys.argv[1]
mesh = Mesh(Layout(pp=2), MPI.COMM_WORLD)
pp, small, large = mesh.pp, np.ones((2, 3)), np.ones(1 << 20)
first, other = pp.rank == 0, 1 - pp.rank
sent = pp.send(small, to=other, tag=7, what="agreed")  # nonblocking, both ways at once
pp.recv(np.empty((2, 3)), source=other, tag=7, what="agreed")
sent.wait()
pp.start_all_reduce(small, what="agreed").wait()
if case == "tag":
    pp.send(small, to=1, tag=4, what="x") if first else pp.recv(small, source=0, tag=5, what="x")
if case == "shape":
    if first:
        pp.send(np.ones((2, 4)), to=1, tag=4, what="x").wait()
    else:
        pp.recv(small, source=0, tag=4, what="x")
if case == "dtype":
    if first:
        pp.send(small.astype("float32"), to=1, tag=4, what="x").wait()
    else:
        pp.recv(small, source=0, tag=4, what="x")
if case == "unreceived" and first:
    pp.send(large, to=1, tag=4, what="x").wait()
if case == "crossed":
    pp.recv(small, source=other, tag=4, what="x")
    pp.send(small, to=other, tag=4, what="x").wait()
if case == "nonblocking" and first:
    pending = pp.start_all_reduce(small, what="y")
if case == "left" and first:
    pp.send(small, to=1, tag=4, what="x").wait()
if case not in ("left", "agree"):
    pp.all_reduce(small, what="loss")
mesh.close()
print("the job went on")
"""


def line_of(text):
    (line,) = (i for i, line in enumerate(PROGRAM.splitlines(), 1) if text in line)
    return line


def run(tmp_path, case):
    path = tmp_path / "messages.py"
    path.write_text(PROGRAM)
    env = {"TPARALLEL_CHECK_TIMEOUT": "1"}
    return mpirun(2, str(path), case, timeout=30, env=env)


def table(tmp_path, case):
    """What the job said before it ended: the sentence, and the lines below it."""
    ended = run(tmp_path, case)
    assert ended.code not in (0, None), ended.out
    assert "the job went on" not in ended.out
    assert ended.seconds < 10, ended.out
    tables = re.findall(
        r"^((?:Message|Collective|Messages) .*[.:])\n((?:    ?.*\n|  .*\n)+)", ended.out, re.M
    )
    assert len(tables) == 1, ended.out
    return tables[0]


@pytest.mark.smoke
def test_matching_messages_pass(tmp_path):
    """The control: both ways at once, a nonblocking sum, and the end without a complaint."""
    ended = run(tmp_path, "agree")
    assert ended.code == 0, ended.out
    assert ended.out.count("the job went on") == 2


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("case", "theirs"), [("shape", "float64[2, 4]"), ("dtype", "float32[2, 3]")]
)
def test_two_ends_that_disagree_end_the_job_with_both_calls(case, theirs, tmp_path):
    """Shape or dtype: before the message itself is looked at, both lines are named."""
    why, rows = table(tmp_path, case)
    assert why == "Message 4 over pp: its two ends disagree."
    assert f"pp rank 0: send {theirs} x  at {tmp_path.name}/messages.py:" in rows
    assert f"pp rank 1: recv float64[2, 3] x  at {tmp_path.name}/messages.py:" in rows


@pytest.mark.smoke
def test_a_message_of_another_tag_is_shown_beside_the_one_that_is_awaited(tmp_path):
    """Who waits, for whom, since which line; and what has come instead."""
    why, rows = table(tmp_path, "tag")
    line = line_of("tag=5")
    assert why == "Message 5 over pp: pp rank 0 sends none within 1 s."
    at = f"at {tmp_path.name}/messages.py:{line}"
    assert f"pp rank 1: recv float64[2, 3] x  {at}, tag 5 from pp rank 0" in rows
    assert f"pp rank 0 has sent: send float64[2, 3] x  {at}, tag 4: nobody takes it" in rows
    assert f"rank 0 in all_reduce float64[2, 3] loss sum  at {tmp_path.name}/messages.py:" in rows


@pytest.mark.smoke
def test_a_send_that_nobody_receives_ends_the_job_with_where_the_receiver_is(tmp_path):
    """A large message waits for its receiver; that one stands in a collective.  Which of the two
    gives up first is not said; an MPI that buffers any size (Intel's) is caught at the end."""
    why, rows = table(tmp_path, "unreceived")
    sent = "send float64[1048576] x"
    if why == "Messages over pp that nobody takes:":
        assert f"pp rank 0 has sent: {sent}" in rows
        return
    assert why in (
        "Message 4 over pp: pp rank 1 takes none within 1 s.",
        "Collective 2 over pp: not every rank came within 1 s.",
    )
    assert re.search(rf"rank 0 (in|has left) {re.escape(sent)} .* to pp rank 1", rows)
    assert "rank 1 in all_reduce float64[2, 3] loss sum" in rows or "pp rank 1: all_reduce" in rows


@pytest.mark.smoke
def test_two_ranks_that_wait_for_each_other_are_both_shown(tmp_path):
    """The classical deadlock: each receives before it sends."""
    why, rows = table(tmp_path, "crossed")
    assert why == "Message 4 over pp: pp rank 1 sends none within 1 s."
    for rank in (0, 1):
        assert re.search(rf"^    rank {rank} in recv .* from pp rank {1 - rank}$", rows, re.M), rows


@pytest.mark.smoke
def test_a_nonblocking_collective_that_one_rank_skips_is_found_when_it_starts(tmp_path):
    """Not when it is awaited: the other rank is already in the next call."""
    why, rows = table(tmp_path, "nonblocking")
    assert why == "Collective 2 over pp: the ranks disagree."
    assert "pp rank 0: all_reduce float64[2, 3] y sum" in rows
    assert "pp rank 1: all_reduce float64[2, 3] loss sum" in rows


@pytest.mark.smoke
def test_a_small_message_that_nobody_takes_is_found_at_the_end(tmp_path):
    """MPI buffers it, so that nothing hangs: it would be lost in silence."""
    why, rows = table(tmp_path, "left")
    assert why == "Messages over pp that nobody takes:"
    assert "pp rank 0 has sent: send float64[2, 3] x" in rows
