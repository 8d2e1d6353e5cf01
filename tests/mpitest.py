"""Run a test function on N MPI ranks, in a fresh ``mpiexec`` job; report every rank.

    from mpitest import mpi

    @mpi(2, 4, timeout=20)
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_the_sum_is_the_same_on_every_rank(comm, dtype): ...

runs the function on 2 ranks, then on 4, once for each dtype.  ``comm`` is COMM_WORLD of the job.
Other arguments (parameters, ``tmp_path``) are evaluated by pytest and handed to every rank; they
must be Python literals or paths.  A rank sees the bare function: fixtures live in pytest only.

What holds on MPICH, Open MPI and Intel MPI:

- The test never hangs: ``timeout`` seconds after all ranks have entered it, the job is ended, and
  the report shows the stack of every rank, also of one that waits inside an MPI call.
- When one rank fails, the others are asked where they are, and the job is ended at once.
- A rank that returns while others wait, crashes, or calls ``sys.exit`` fails the test.
- No process is left, not even when pytest itself is killed with ``kill -9``.

A rank is this file run as a script.  It talks to pytest through small files in one folder:
``R.pid``, ``R.log`` (all that it wrote, and its stack), ``R.entered`` (it runs the test now), and
``R.ok`` | ``R.failed`` | ``R.skipped``.
"""

import ast
import faulthandler
import functools
import importlib.util
import inspect
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tparallel import launch

FOLDER = "MPITEST_FOLDER"  # set in the ranks, and only there
RANK_ENV = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TPARALLEL_CHECK": "1"}
START = 60  # seconds for all ranks to enter the test, on a machine that is busy
LAST_RESORT = 10  # seconds after all these when a rank ends itself, were pytest gone


def mpi(
    *sizes: int, timeout: float = 30, env: dict[str, str] | None = None
) -> Callable[[Callable], Callable]:
    """Decorate ``def test_x(comm, ...)`` to run on each of ``sizes`` ranks, with these variables in
    their environment; see the module."""

    def decorate(function: Callable) -> Callable:
        if FOLDER in os.environ:
            return function
        signature = inspect.signature(function)
        if function.__qualname__ != function.__name__ or "comm" not in signature.parameters:
            raise TypeError(f"@mpi needs a module-level test with the argument comm: {function}")

        @functools.wraps(function)
        def test(ranks: int, **arguments):
            _run(function, ranks, arguments, timeout, env or {})

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
            hung = not _wait(lambda: job.process.poll() is not None, timeout)
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
    function: Callable, ranks: int, arguments: dict, timeout: float, more: dict[str, str]
) -> None:
    """pytest's side: start the job, watch the files, end the job, pass or fail."""
    script = [__file__, inspect.getfile(function), function.__name__, _encode(arguments)]
    with (
        tempfile.TemporaryDirectory(prefix="mpitest-") as name,
        open(f"{name}/launcher", "wb") as out,
    ):
        folder = Path(name)
        states = functools.partial(_states, folder, ranks)
        env = {**RANK_ENV, **more, FOLDER: name, "MPITEST_TIMEOUT": str(timeout)}
        job = launch.Job(ranks, script, env=env, stdout=out, stderr=out)

        def over() -> bool:
            return job.process.poll() is not None or "failed" in states()

        def running() -> bool:
            return over() or not {"absent", "starting"} & {*states()}

        try:
            started = _wait(running, START)
            ended = started and _wait(over, timeout)
            if job.process.poll() is None:
                _ask_where(folder, states())
            said = _read(folder / "launcher")  # not what it says when it is ended below
        finally:
            job.end()
        if set(states()) == {"skipped"}:
            pytest.skip(_read(folder / "0.skipped"))
        if set(states()) != {"ok"} or job.process.returncode:
            how = "failed" if "failed" in states() else f"exit code {job.process.returncode}"
            how = how if ended else f"hung for {timeout if started else START} s"
            title = f"{function.__name__} on {ranks} ranks: {how}"
            pytest.fail(f"{title}\n{_report(folder, states(), said)}", pytrace=False)


def _wait(done: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def _states(folder: Path, ranks: int) -> list[str]:
    """Of each rank: ok, failed, skipped, entered, starting (it wrote its pid), or absent."""

    def state(rank: int) -> str:
        for word in ("failed", "skipped", "ok", "entered"):
            if (folder / f"{rank}.{word}").exists():
                return word
        return "starting" if (folder / f"{rank}.pid").exists() else "absent"

    return [state(rank) for rank in range(ranks)]


def _ask_where(folder: Path, states: list[str]) -> None:
    """Have every rank that still runs write its stack into its log."""
    asked = [rank for rank, state in enumerate(states) if state in ("starting", "entered")]
    sizes = {rank: (folder / f"{rank}.log").stat().st_size for rank in asked}
    for rank in asked:
        try:
            os.kill(int(_read(folder / f"{rank}.pid")), signal.SIGUSR1)
        except ProcessLookupError:
            sizes.pop(rank)
    _wait(lambda: all((folder / f"{r}.log").stat().st_size > s for r, s in sizes.items()), 2)
    time.sleep(0.05)  # the end of a long stack


UNFINISHED = {"entered": "did not finish", "starting": "did not start", "absent": "did not start"}


def _report(folder: Path, states: list[str], launcher: str) -> str:
    lines = []
    for rank, state in enumerate(states):
        lines.append(f"--- rank {rank}: {UNFINISHED.get(state, state)}")
        if state != "ok":
            lines += ["    " + line for line in _read(folder / f"{rank}.log").splitlines()[-60:]]
    if launcher.strip():
        lines += ["--- launcher", *("    " + line for line in launcher.splitlines()[-15:])]
    return "\n".join(lines)


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _encode(arguments: dict) -> str:
    """As text that :func:`_decode` reads back: literals, and paths."""
    paths = {name: str(value) for name, value in arguments.items() if isinstance(value, Path)}
    literals = {name: value for name, value in arguments.items() if name not in paths}
    for name, value in literals.items():
        try:
            same = ast.literal_eval(repr(value)) == value
        except (ValueError, SyntaxError):
            same = False
        if not same:
            raise TypeError(f"an argument of an @mpi test is a literal or a path: {name}={value!r}")
    return repr((literals, paths))


def _decode(text: str) -> dict:
    literals, paths = ast.literal_eval(text)
    return {**literals, **{name: Path(value) for name, value in paths.items()}}


def _rank_main(file: str, name: str, arguments: str) -> None:
    """A rank's side: run the test, say how it went, and stay until pytest ends the job."""
    folder, rank = Path(os.environ[FOLDER]), launch.env_rank()
    log = open(folder / f"{rank}.log", "w")  # noqa: SIM115
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    faulthandler.enable(log)
    faulthandler.register(signal.SIGUSR1, log)  # a C handler: it works inside MPI calls too
    patience = START + float(os.environ["MPITEST_TIMEOUT"]) + LAST_RESORT
    faulthandler.dump_traceback_later(patience, exit=True, file=log)
    launch.die_with_parent(signal.SIGKILL)
    (folder / f"{rank}.pid").write_text(str(os.getpid()))
    try:
        from mpi4py import MPI

        test = getattr(_load(file), name)
        (folder / f"{rank}.entered").touch()
        test(comm=MPI.COMM_WORLD, **_decode(arguments))
        MPI.COMM_WORLD.Barrier()  # a rank that is left behind fails here, by name
    except pytest.skip.Exception as e:
        (folder / f"{rank}.skipped").write_text(str(e))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        (folder / f"{rank}.failed").touch()
        time.sleep(LAST_RESORT)
        os._exit(1)
    else:
        (folder / f"{rank}.ok").touch()


def _load(file: str):
    """The test module, its asserts rewritten by pytest so that they show their values."""
    from _pytest.assertion.rewrite import rewrite_asserts

    sys.path.insert(0, os.path.dirname(file))
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    source = Path(file).read_bytes()
    tree = ast.parse(source, file)
    rewrite_asserts(tree, source, file)
    exec(compile(tree, file, "exec"), module.__dict__)
    return module


if __name__ == "__main__":
    _rank_main(*sys.argv[1:])
