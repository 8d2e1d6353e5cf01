"""A job of ranks that runs one test after another: pytest's side of ``mpirank.py``.

Starting ranks is what a small test would spend its time on, so a job is kept for the next test
that wants as many ranks in the same environment.  Between tests its ranks wait for a line in a
pipe, outside of MPI, and cost no time; when pytest goes, the pipe closes and they end.

Everything is said through small files in the folder of the job:

    R.pid      the process of rank R
    R.work     a pipe; each line is the number N of the next test
    N/task     the test: file, function, arguments, seconds
    N/R.log    all that rank R wrote meanwhile, and its stack
    N/R.entered, then N/R.ok | N/R.failed | N/R.skipped
"""

import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tparallel import launch

FOLDER = "MPITEST_FOLDER"  # set in the ranks, and only there
START = 60  # seconds for all ranks to enter the test, on a machine that is busy
LAST_RESORT = 10  # seconds after all these when a rank ends itself, were pytest gone
KEPT = 4  # jobs that wait for another test
WORDS = ("failed", "skipped", "ok", "entered")  # the last that a rank has said comes first
UNFINISHED = {"entered": "did not finish", "starting": "did not start", "absent": "did not start"}


class Ranks:
    """A job of ``ranks`` ranks with these variables in their environment."""

    def __init__(self, ranks: int, env: dict[str, str]) -> None:
        self.ranks, self.tests, self.test = ranks, [], Path()
        self._temporary = tempfile.TemporaryDirectory(prefix="mpitest-")
        self.folder = Path(self._temporary.name)
        self._pipes = [self._pipe(rank) for rank in range(ranks)]
        script = str(Path(__file__).with_name("mpirank.py"))
        env = {**env, FOLDER: str(self.folder)}
        with open(self.folder / "launcher", "wb") as out:
            self._job = launch.Job(ranks, [script], env=env, stdout=out, stderr=out)

    def _pipe(self, rank: int) -> int:
        path = self.folder / f"{rank}.work"
        os.mkfifo(path)
        return os.open(path, os.O_RDWR)  # for reading too: opening does not wait for the rank

    def begin(self, name: str, task: str) -> None:
        """Have every rank run a test."""
        self.test = self.folder / str(len(self.tests))
        self.tests.append(name)
        self.test.mkdir()
        (self.test / "task").write_text(task)
        for pipe in self._pipes:
            os.write(pipe, f"{self.test.name}\n".encode())

    def states(self) -> list[str]:
        """Of each rank: ok, failed, skipped, entered, starting (it wrote its pid), or absent."""
        said, alive = {*os.listdir(self.test)}, {*os.listdir(self.folder)}

        def state(rank: int) -> str:
            pid = "starting" if f"{rank}.pid" in alive else "absent"
            return next((word for word in WORDS if f"{rank}.{word}" in said), pid)

        return [state(rank) for rank in range(self.ranks)]

    def running(self) -> bool:
        """Have all ranks entered the test?"""
        return self.over() or not {"absent", "starting"} & {*self.states()}

    def over(self) -> bool:
        """Has a rank failed, have all come to the end, or has the job ended?"""
        states = {*self.states()}
        return self.code() is not None or "failed" in states or states <= {"ok", "skipped"}

    def code(self) -> int | None:
        """The exit code of the job, if it has ended."""
        return self._job.process.poll()

    def ask_where(self) -> None:
        """Have every rank that is in the test write its stack into its log."""
        states = self.states()
        asked = [rank for rank, word in enumerate(states) if word in ("starting", "entered")]
        logs = {rank: self.test / f"{rank}.log" for rank in asked}
        sizes = {rank: _size(log) for rank, log in logs.items()}
        for rank in asked:
            try:
                os.kill(int(read(self.folder / f"{rank}.pid")), signal.SIGUSR1)
            except ProcessLookupError:
                sizes.pop(rank)
        wait(lambda: all(_size(logs[rank]) > size for rank, size in sizes.items()), 2)
        time.sleep(0.05)  # the end of a long stack

    def report(self) -> str:
        """What every rank said in this test, and the launcher."""
        lines = []
        for rank, state in enumerate(self.states()):
            lines.append(f"--- rank {rank}: {UNFINISHED.get(state, state)}")
            if state != "ok":
                lines += _indented(read(self.test / f"{rank}.log"), 60)
        if launcher := read(self.folder / "launcher").strip():
            lines += ["--- launcher", *_indented(launcher, 15)]
        return "\n".join(lines)

    def dismiss(self) -> None:
        """Let the ranks end, as a program does at its end."""
        while self._pipes:
            os.close(self._pipes.pop())

    def ends_well(self) -> bool:
        """Do all ranks come to their end, and with exit code 0?"""
        self.dismiss()
        wait(lambda: self.code() is not None, START)
        return self.code() == 0

    def end(self) -> None:
        """Leave nothing, whatever the ranks do."""
        self.dismiss()
        self._job.end()
        self._temporary.cleanup()


class Pool:
    """The jobs that wait for another test, and those that are about to end."""

    def __init__(self) -> None:
        self.waiting: dict[object, Ranks] = {}  # the one that was used last at the end
        self.leaving: list[Ranks] = []

    def take(self, ranks: int, env: dict[str, str], fresh: bool) -> Ranks:
        """A job that waits, or a new one; it is the caller's until it is given back."""
        key = _key(ranks, env)
        if fresh or key not in self.waiting:
            return Ranks(ranks, env)
        job = self.waiting.pop(key)
        if job.code() is None:
            return job
        self.leaving.append(job)  # it ended while nobody looked: told at the end
        return Ranks(ranks, env)

    def give_back(self, job: Ranks, env: dict[str, str]) -> None:
        self.waiting[_key(job.ranks, env)] = job
        while len(self.waiting) > KEPT:
            oldest = self.waiting.pop(next(iter(self.waiting)))
            oldest.dismiss()
            self.leaving.append(oldest)

    def close(self) -> list[str]:
        """End all jobs.  Returns what is to be said of those that did not end well."""
        jobs = [*self.leaving, *self.waiting.values()]
        said = [
            f"{job.ranks} ranks ended with exit code {job.code()} after {job.tests}, the last of "
            f"which had passed:\n{job.report()}"
            for job in jobs
            if not job.ends_well()
        ]
        self.kill()
        return said

    def kill(self) -> None:
        for job in [*self.leaving, *self.waiting.values()]:
            job.end()
        self.leaving, self.waiting = [], {}


def _key(ranks: int, env: dict[str, str]) -> object:
    """Jobs are alike if their ranks are as many and see the same variables."""
    full = {**os.environ, **env}
    full.pop("PYTEST_CURRENT_TEST", None)
    return ranks, frozenset(full.items())


def wait(done: Callable[[], bool], seconds: float) -> bool:
    end, pause = time.monotonic() + seconds, 0.001
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(pause)
        pause = min(1.2 * pause, 0.01)
    return True


def read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _indented(text: str, last: int) -> list[str]:
    return ["    " + line for line in text.splitlines()[-last:]]
