"""The command line: answers at once, starts its ranks, and speaks with one voice."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from mpitest import mpirun

from tparallel import cli, launch


def tparallel(*argv: str) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "tparallel", *argv]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)


def test_help_names_every_command_and_imports_neither_numpy_nor_mpi():
    """What makes it answer at once."""
    code = (
        "import sys, tparallel.cli as cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit as e: print('exit', e.code)\n"
        "print('heavy', {'numpy', 'mpi4py', 'rich'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "exit 0\nheavy set()\n" in out.stdout
    for word in ("compare", "train", "where", "info", "examples:", "mpirun -n 8"):
        assert word in out.stdout


HEAVY = {"numba", "matplotlib", "torch", "transformers", "cupy"}


def test_what_computes_nothing_imports_nothing_that_takes_long():
    """The help of every command, what a run would use, a question, two mistakes: without numba,
    whose import alone takes longer than the answer, also where the fast kernels are chosen."""
    code = (
        "import sys, contextlib, tparallel.cli as cli\n"
        "lines = [['info'], ['where', 'block.0.mlp.w_in', '--tp', '2'], ['train', '--x'], ['x']]\n"
        "for line in lines + [[name, '--help'] for name in cli.COMMANDS]:\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(sys.stderr):\n"
        "        cli.main(line)\n"
        f"print({HEAVY} & set(sys.modules), 'tparallel.kernels.fast' in sys.modules)"
    )
    env = {**os.environ, "TPARALLEL_KERNELS": "fast" if find_spec("numba") else "plain"}
    line = [sys.executable, "-c", code]
    out = subprocess.run(line, env=env, capture_output=True, text=True, check=False)
    assert out.stdout == f"set() {bool(find_spec('numba'))}\n", out.stderr
    assert out.stderr.count("usage: tparallel") >= len(cli.COMMANDS) and "kernels" in out.stderr


@pytest.mark.parametrize("argv", [("no-such-command",), ("info", "--no-such-option"), ()])
def test_a_wrong_command_line_ends_with_2_and_the_usage(argv):
    """As argparse does, without a traceback."""
    ended = tparallel(*argv)
    assert ended.returncode == 2 and "usage: tparallel" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_under_a_launcher_help_and_usage_are_printed_once():
    """Three ranks, one answer, the exit code of one process."""
    job = mpirun(3, "-m", "tparallel", "--help")
    assert job.code == 0 and job.out.count("usage: tparallel") == 1, job.out
    job = mpirun(3, "-m", "tparallel", "train", "--no-such-option")
    assert job.code == 2 and job.out.count("unrecognized arguments") == 1, job.out


@pytest.mark.smoke
def test_ranks_that_contradict_the_launcher_are_refused_once():
    """--ranks 4 under mpirun -n 2."""
    job = mpirun(2, "-m", "tparallel", "train", "--ranks", "4")
    assert job.code == 2 and job.out.count("LayoutError: --ranks and the launcher") == 1, job.out
    assert "mpirun -n 4" in job.out and "Traceback" not in job.out


def test_a_command_starts_its_ranks_and_ends_with_their_exit_code():
    """A refusal on the ranks that the command itself started: 2, said once."""
    ended = tparallel("train", "--ranks", "2", "--tp", "3")
    assert ended.returncode == 2, ended
    assert (ended.stdout + ended.stderr).count("LayoutError") == 1, ended


@pytest.mark.smoke
def test_copies_are_refused_before_the_command_loads_mpi():
    """Loading it is where a library that was started by another MPI's launcher aborts or warns."""
    foreign = {"openmpi": ("PMI_SIZE", "PMI_RANK")}.get(
        launch.installed().name, ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")
    )
    code = (
        "import sys, tparallel.cli as cli\n"
        "print(cli.main(['train', '--tp', '3']), 'mpi4py.MPI' in sys.modules)"
    )
    env = {**os.environ, foreign[0]: "3", foreign[1]: "0"}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert out.stdout == "2 False\n" and out.stderr.count("LayoutError") == 1, out


def test_the_process_that_starts_the_ranks_does_not_start_mpi():
    """It would be one more rank that waits."""
    code = (
        "import tparallel.cli as cli, tparallel.launch as launch\n"
        "launch.run_ranks = lambda ranks, argv: 40 + ranks\n"
        "print(cli.main(['compare', '--ranks', '2']))\n"
        "from mpi4py import MPI; print(MPI.Is_initialized())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout == "42\nFalse\n", out


def test_info_tells_what_a_run_here_would_use():
    """One line each; the launcher is the one that would be started."""
    ended = tparallel("info")
    assert ended.returncode == 0, ended.stderr
    facts = dict(line.split(maxsplit=1) for line in ended.stdout.splitlines())
    assert facts["mpiexec"] == launch.installed().mpiexec
    assert facts["mpi"].startswith(str(launch.installed()))
    assert facts["cuda-aware"].split(":")[0] in ("yes", "no")
    assert {"tparallel", "python", "packages", "backend", "cores", "threads"} <= set(facts)
