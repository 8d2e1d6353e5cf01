"""Run a test function on N MPI ranks; report every rank.

    from mpitest import mpi

    @mpi(2, 4, timeout=20)
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_the_sum_is_the_same_on_every_rank(comm, dtype): ...

runs the function on 2 ranks, then on 4, once for each dtype.  ``comm`` is a communicator of all
ranks of the job, the test's own.  Other arguments (parameters, ``tmp_path``) are evaluated by
pytest and handed to every rank; they must be Python literals or paths.  A rank sees the bare
function: fixtures live in pytest only.

A job that has passed a test runs the next one that wants as many ranks in the same environment.  A
test must leave the process as it found it, which is checked, and the messages received; one that
cannot, or that measures the process, says ``fresh=True`` and has a job of its own.  After anything
but a pass the job is ended, so that no test suffers from another.

What holds on MPICH, Open MPI and Intel MPI:

- The test never hangs: ``timeout`` seconds after all ranks have entered it, the job is ended, and
  the report shows the stack of every rank, also of one that waits inside an MPI call.
- When one rank fails, the others are asked where they are, and the job is ended at once.
- A rank that returns while others wait, crashes, or calls ``sys.exit`` fails the test.
- No process is left, not even when pytest itself is killed with ``kill -9``.
"""

import ast
import atexit
import functools
import inspect
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from mpijob import FOLDER, START, Pool, Ranks, read, wait

from tparallel import launch

RANK_ENV = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TPARALLEL_CHECK": "1"}

pool = Pool()
atexit.register(pool.kill)


@pytest.fixture(scope="session", autouse=True)
def ranks_end_well():
    """What a job does after its last test counts, too: it may crash where MPI is finalized."""
    yield
    if said := pool.close():
        pytest.fail("\n".join(said), pytrace=False)


def mpi(
    *sizes: int, timeout: float = 30, env: dict[str, str] | None = None, fresh: bool = False
) -> Callable[[Callable], Callable]:
    """Decorate ``def test_x(comm, ...)`` to run on each of ``sizes`` ranks, with these variables in
    their environment, ``fresh``: in a job of its own; see the module."""

    def decorate(function: Callable) -> Callable:
        if FOLDER in os.environ:
            return function
        signature = inspect.signature(function)
        if function.__qualname__ != function.__name__ or "comm" not in signature.parameters:
            raise TypeError(f"@mpi needs a module-level test with the argument comm: {function}")

        @functools.wraps(function)
        def test(ranks: int, **arguments):
            _run(function, ranks, arguments, timeout, {**RANK_ENV, **(env or {})}, fresh)

        wanted = [p for name, p in signature.parameters.items() if name != "comm"]
        ranks = inspect.Parameter("ranks", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        test.__signature__ = signature.replace(parameters=[ranks, *wanted])  # type: ignore
        for mark in (
            pytest.mark.mpi,
            pytest.mark.parametrize("ranks", sizes, ids="{}ranks".format),
        ):
            test = mark(test)
        return test

    return decorate


@dataclass
class Ended:
    """A finished job of :func:`mpirun`."""

    code: int
    out: str  # stdout and stderr of all ranks, as they came
    seconds: float


def mpirun(ranks: int, *argv: str, timeout: float = 60, env: dict | None = None) -> Ended:
    """Run ``python ARGV`` on ``ranks`` ranks: for scripts, and for tests of how jobs end."""
    start = time.monotonic()
    with tempfile.TemporaryFile() as out:
        job = launch.Job(ranks, argv, env={**RANK_ENV, **(env or {})}, stdout=out, stderr=out)
        try:
            hung = not wait(lambda: job.process.poll() is not None, timeout)
        finally:
            seconds = time.monotonic() - start
            job.end()
        out.seek(0)
        text = out.read().decode(errors="replace")
    if hung:
        pytest.fail(
            f"{' '.join(argv)} on {ranks} ranks hung for {timeout} s:\n{text}", pytrace=False
        )
    return Ended(job.process.returncode, text, seconds)


def _run(
    function: Callable,
    ranks: int,
    arguments: dict,
    timeout: float,
    env: dict[str, str],
    fresh: bool,
) -> None:
    """Have the ranks of a job run the test; pass, skip or fail as they do."""
    name, passed = function.__name__, False
    task = (inspect.getfile(function), name, _encode(arguments), timeout, fresh)
    job = pool.take(ranks, env, fresh)
    try:
        job.begin(name, repr(task))
        started = wait(job.running, START)
        ended = started and wait(job.over, timeout)
        if {*job.states()} == {"ok"}:
            passed = job.ends_well() if fresh else job.code() is None
        if not passed:
            _tell(job, "" if ended else f"hung for {timeout if started else START} s")
    finally:
        if passed and not fresh:
            pool.give_back(job, env)
        else:
            job.end()


def _tell(job: Ranks, hung: str) -> None:
    """Skip, or fail with what every rank has to say."""
    states = job.states()
    if {*states} == {"skipped"}:
        pytest.skip(read(job.test / "0.skipped"))
    if job.code() is None:
        wait(lambda: "entered" not in job.states(), 0.2)  # others may be about to fail, too
        job.ask_where()
    how = hung or ("failed" if "failed" in states else f"exit code {job.code()}")
    title = f"{job.tests[-1]} on {job.ranks} ranks: {how}"
    pytest.fail(f"{title}\n{job.report()}", pytrace=False)


def _encode(arguments: dict) -> tuple[dict, dict]:
    """Literals, and paths as text: a rank reads them back."""
    paths = {name: str(value) for name, value in arguments.items() if isinstance(value, Path)}
    literals = {name: value for name, value in arguments.items() if name not in paths}
    for name, value in literals.items():
        try:
            same = ast.literal_eval(repr(value)) == value
        except (ValueError, SyntaxError):
            same = False
        if not same:
            raise TypeError(f"an argument of an @mpi test is a literal or a path: {name}={value!r}")
    return literals, paths
