"""Start ranks: the one place that knows how each MPI's ``mpiexec`` wants to be called."""

import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, MutableMapping, Sequence
from typing import IO

from .memory import remove, segments
from .mpi import installed

# On a laptop the ranks outnumber the cores: no pinning, and who waits lets others work.
FLAGS = {
    "mpich": [],
    "openmpi": ["--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1"],
    "intel": [],
}
ENV = {
    "mpich": {},
    "openmpi": {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"},
    "intel": {"I_MPI_PIN": "0", "I_MPI_THREAD_YIELD": "2"},
}
# Any of these says that mpiexec may reach other hosts, where shared memory is not enough.
SEVERAL_HOSTS = (
    "SLURM_JOB_ID",
    "PBS_NODEFILE",
    "LSB_HOSTS",
    "PE_HOSTFILE",
    "I_MPI_HYDRA_HOST_FILE",
)

THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "NUMBA_NUM_THREADS")
JOB = "TPARALLEL_JOB"  # marks every process of a job that was started here
RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK")  # in the ranks, not in their launcher


def command(
    ranks: int, argv: Sequence[str], env: Mapping[str, str] | None = None
) -> tuple[list[str], dict[str, str]]:
    """The command line and environment that run ``python ARGV`` on ``ranks`` processes.

    ``argv`` are the interpreter's arguments, e.g. ``["-m", "tparallel", "train"]``; ``env``
    is added to this process's own.  What the user has set is kept.
    """
    mpi = installed()
    full = {**os.environ, **(env or {})}
    for name, value in ENV[mpi.name].items():
        full.setdefault(name, value)
    if mpi.name == "intel" and not any(name in full for name in SEVERAL_HOSTS):
        full.setdefault("I_MPI_FABRICS", "shm")
    limit_threads(full)
    full.setdefault("PYTHONUNBUFFERED", "1")
    line = [mpi.mpiexec, *FLAGS[mpi.name], "-n", str(ranks), sys.executable, *argv]
    return line, full


def limit_threads(env: MutableMapping[str, str]) -> None:
    """One BLAS thread per rank in ``env``, or as many as OMP_NUM_THREADS says."""
    threads = env.setdefault("OMP_NUM_THREADS", "1")
    for name in THREADS:
        env.setdefault(name, threads)


class Job:
    """A running ``mpiexec`` and every process below it.

    The processes are found by a token in their environment, so that none escapes: not one that
    left the process group, nor one whose parent is gone.  If this process dies, even by
    ``kill -9``, the kernel ends ``mpiexec``, and ``mpiexec`` its ranks.
    """

    def __init__(
        self,
        ranks: int,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdout: IO | int | None = None,
        stderr: IO | int | None = None,
    ) -> None:
        token = secrets.token_hex(8)
        line, full = command(ranks, argv, {**(env or {}), JOB: token})
        self._mark = f"{JOB}={token}"
        self.process = subprocess.Popen(
            line,
            env=full,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )

    def pids(self) -> list[int]:
        """The live processes of this job."""
        return processes(self._mark)

    def signal_ranks(self, number: int) -> None:
        """Send a signal to the ranks themselves: each MPI's mpiexec would do something else."""
        for pid in processes(self._mark, *RANK_VARIABLES):
            _kill(pid, number)

    def end(self, grace: float = 2.0) -> None:
        """Leave no process: ask mpiexec, wait for ``grace`` seconds, then kill what is left."""
        memory = set().union(*map(segments, self.pids()))
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(grace)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        deadline = time.monotonic() + 5
        while (left := self.pids()) and time.monotonic() < deadline:
            for pid in left:
                _kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        remove(memory)


def run_ranks(ranks: int, argv: Sequence[str]) -> int:
    """Run ``python ARGV`` on ``ranks`` processes and return the exit code of the job.

    Ctrl-C, SIGTERM and SIGHUP go to every rank as Ctrl-C; a second one ends the job at once.
    """
    asked: list[int] = []

    def forward(number: int, frame: object) -> None:
        asked.append(number)
        if len(asked) == 1:
            job.signal_ranks(signal.SIGINT)
        else:
            job.process.terminate()

    job = Job(ranks, argv, env=_terminal())
    before = {n: signal.signal(n, forward) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        code = job.process.wait()
    finally:
        job.end()
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        return 128 + asked[0]
    return code if code >= 0 else 128 - code


def _terminal() -> dict[str, str]:
    """Ranks write into a pipe; tell ``rich`` about the terminal at its other end."""
    if not sys.stdout.isatty():
        return {}
    size = shutil.get_terminal_size()
    return {"COLUMNS": str(size.columns), "LINES": str(size.lines), "TTY_COMPATIBLE": "1"}


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process ``number`` when its parent dies (Linux)."""
    pr_set_pdeathsig = 1
    if prctl := getattr(_libc, "prctl", None):
        prctl(pr_set_pdeathsig, int(number))


_libc = ctypes.CDLL(None)


def processes(mark: str, *any_of: str) -> list[int]:
    """The live processes with ``NAME=value`` in their environment, and any of the other names.

    Linux; elsewhere none are found.
    """
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc") if os.path.isdir("/proc") else ()):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                pairs = file.read().decode(errors="replace").split("\0")
        except OSError:  # it ended meanwhile, or is another user's
            continue
        if mark in pairs and (not any_of or {pair.split("=")[0] for pair in pairs} & {*any_of}):
            found.append(int(pid))
    return found


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
