"""The ranks of a job make different calls: it ends within seconds, and says who was where."""

import re

import pytest
from mpitest import mpirun

PROGRAM = """
import sys, time
import numpy as np
from mpi4py import MPI
from tparallel.comm.axis import Axis
from tparallel.comm.ledger import Ledger

axis, case = Axis("tp", MPI.COMM_WORLD, Ledger()), sys.argv[1]
axis._checker.timeout = 30.0 if case == "late" and axis.rank == 0 else 1.0
odd = axis.rank == 1
x = np.ones(6)
axis.all_reduce(x, what="agreed")
if case == "op":
    axis.all_gather(x, what="y") if odd else axis.all_reduce(x, what="y")
if case == "shape":
    axis.all_reduce(x[: 5 if odd else 6], what="y")
if case == "dtype":
    axis.all_reduce(x.astype("float32" if odd else "float64"), what="y")
if case == "root":
    axis.broadcast(x, root=1 if odd else 0, what="y")
if case == "what":
    axis.all_reduce(x, what="attn.dx" if odd else "mlp.dx")
if case == "line":
    if odd:
        axis.all_reduce(x, what="y")
    else:
        axis.all_reduce(x, what="y")
if case in ("absent", "late") and odd:
    time.sleep(60)
axis.all_reduce(x, what="z")
print("the job went on")
"""
# What rank 1 says, and what the others say, with the text of the line that they stand on.
CASES = {
    "op": ("all_gather float64[6] y", "all_reduce float64[6] y sum", "all_gather"),
    "shape": ("all_reduce float64[5] y sum", "all_reduce float64[6] y sum", "5 if odd"),
    "dtype": ("all_reduce float32[6] y sum", "all_reduce float64[6] y sum", "astype"),
    "root": ("broadcast float64[6] y root 1", "broadcast float64[6] y root 0", "root="),
    "what": ("all_reduce float64[6] attn.dx sum", "all_reduce float64[6] mlp.dx sum", "attn"),
}


def line_of(text):
    """Line numbers of PROGRAM that contain the text."""
    return [i for i, line in enumerate(PROGRAM.splitlines(), 1) if text in line]


def run(tmp_path, case, ranks=3):
    """The table's head, and its line for each rank, of a job that must end by itself, and soon."""
    path = tmp_path / "mismatched.py"
    path.write_text(PROGRAM)
    ended = mpirun(ranks, str(path), case, timeout=20)
    assert ended.code not in (0, None), ended.out
    assert "the job went on" not in ended.out
    assert ended.seconds < 10, ended.out
    heads = re.findall(r"^Collective (\d+ over \w+: .*)$", ended.out, re.MULTILINE)
    assert len(heads) == 1, ended.out  # one table, not one per rank
    rows = re.findall(r"^    tp rank (\d): (.*)$", ended.out, re.MULTILINE)
    assert [int(rank) for rank, _ in rows] == list(range(ranks)), ended.out
    return heads[0], [said for _, said in rows]


@pytest.mark.parametrize("case", CASES)
def test_ranks_that_disagree_end_the_job_with_one_table_of_who_called_what(case, tmp_path):
    """Operation, shape, dtype, root or reason: every rank's call, and the line it came from."""
    odd, others, text = CASES[case]
    head, said = run(tmp_path, case)
    assert head == "2 over tp: the ranks disagree."
    (line,) = line_of(text)
    for rank, row in enumerate(said):
        call = odd if rank == 1 else others
        assert row == f"{call}  at {tmp_path.name}/mismatched.py:{line}"


def test_the_same_call_from_two_lines_is_a_disagreement(tmp_path):
    """Ranks on different branches are about to differ: the lines are named."""
    head, said = run(tmp_path, "line", ranks=2)
    lines = [int(row.rpartition(":")[2]) for row in said]
    branch = line_of("    if odd:")[0]
    assert head == "2 over tp: the ranks disagree."
    assert lines == [branch + 3, branch + 1]


@pytest.mark.parametrize("case", ["absent", "late"])
def test_a_rank_that_never_comes_ends_the_job_and_is_named(case, tmp_path):
    """The others wait for so long and no longer, even if the first of them has just come."""
    head, said = run(tmp_path, case)
    assert head == "2 over tp: not every rank came within 1 s."
    (line,) = line_of('what="z"')
    came = f"all_reduce float64[6] z sum  at {tmp_path.name}/mismatched.py:{line}"
    assert said == [came, "-", came]


def test_a_long_reason_in_any_script_still_gives_the_table(tmp_path):
    """What is said is cut to a fixed number of bytes, which may fall inside a letter."""
    path = tmp_path / "long.py"
    path.write_text(PROGRAM.replace('"attn.dx"', '"ab" + 300 * "Ψ"').replace('"mlp.dx"', '"y"'))
    ended = mpirun(2, str(path), "what", timeout=20)
    assert ended.code not in (0, None)
    assert "all_reduce float64[6] abΨΨΨ" in ended.out
