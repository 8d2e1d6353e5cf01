"""A job ends as one: when a rank fails, all end, and the reason is read once.

Without this, a Python error on one rank ends that rank only; the others wait for it for ever.
"""

import contextlib
import faulthandler
import os
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from ..errors import TParallelError
from .guard import env_rank, refuse_singletons, started_copies
from .heap import keep_freed_memory
from .host import Host, sign_off
from .memory import remove, segments
from .mpi import installed
from .start import die_with_parent, limit_threads
from .stop import signals
from .watchdog import Watchdog, main_stack

PATIENCE = 1.5  # seconds that a rank which cannot go on waits for the others to say the same
NOISE = 0.2  # seconds for what was written to reach the terminal before the job ends
INTERRUPTED = 128 + signal.SIGINT

_place = ""
_watchdog: Watchdog | None = None


def at(place: str) -> None:
    """Say where this rank is, e.g. ``at("step 120")``: a failure names it, a watchdog waits on."""
    global _place
    _place = place
    if _watchdog:
        _watchdog.moved()


def guarded(main: Callable[[], int | None], timeout: float = 0) -> int:
    """Run ``main`` as a rank of a job and return its exit code; for entry points only.

    ``timeout``: end the job, with every rank's stack, if no call of :func:`at` comes for so many
    seconds; 0 for never.

    Communicates: one allgather before ``main``, one non-blocking barrier after it.

    Errors, by what ``main`` raises:
      TParallelError     the same on every rank: its text once, every rank returns 2
      KeyboardInterrupt  (Ctrl-C, SIGTERM) one line, 130
      anything else      (on any thread) one traceback, one line for each further rank that
                         fails, and the whole job ends with exit code 1
    """
    try:
        ranks = _join()
    except TParallelError as e:
        return _refused(e)
    if timeout:
        ranks.watch(timeout)
    try:
        code = main() or 0
    except BaseException as e:
        return ranks.ended(e)
    return ranks.leave(code, "", float("inf"))


def guard_script() -> None:
    """Protect a script that has no ``main``, from this line to its end, as :func:`guarded` does."""
    try:
        ranks = _join()
    except TParallelError as e:
        sys.exit(_refused(e))

    def hook(kind: type, error: BaseException, trace: object) -> None:
        from mpi4py import MPI

        code = ranks.ended(error)
        MPI.Finalize()
        os._exit(code)

    sys.excepthook = hook


def defer_mpi() -> None:
    """Let ``import mpi4py.MPI`` start nothing, until :func:`guarded` does.  Call it before."""
    import mpi4py

    mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
    mpi4py.rc.fast_reduce = False  # comm.allreduce(object) would wait without letting threads run


def refused() -> int:
    """2 after saying why, if a launcher started copies that cannot find each other; else 0."""
    try:
        if started_copies() > 1:
            refuse_singletons(installed())
    except TParallelError as e:
        return _refused(e)
    return 0


def _join() -> "_Ranks":
    """Find the other ranks, or raise the TParallelError that says why there are none."""
    limit_threads(os.environ)
    keep_freed_memory()
    faulthandler.enable()
    die_with_parent(signal.SIGKILL)
    mpi = installed()
    refuse_singletons(mpi)
    from mpi4py import MPI

    if not MPI.Is_initialized():
        MPI.Init_thread()
    refuse_singletons(mpi, MPI.COMM_WORLD.size)
    return _Ranks(MPI.COMM_WORLD.Dup())


def _refused(error: TParallelError) -> int:
    """Copies that cannot talk to each other: the first one speaks, before any of them ends."""
    if env_rank() == 0:
        _write(f"{type(error).__name__}: {error}")
    time.sleep(NOISE if env_rank() == 0 else 1)
    return 2


def _write(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


class _Ranks:
    """What the ranks agree on before anything can go wrong, and how they end."""

    def __init__(self, comm: Any) -> None:
        name = socket.gethostname()
        known = comm.allgather((name, secrets.token_hex(8)))
        names = [n for n, _ in known]
        self.comm, self.name = comm, name
        self.one_host = len(set(names)) == 1
        self.place_of_host = list(dict.fromkeys(names)).index(name)
        here = [rank for rank, n in enumerate(names) if n == name]
        self.host = Host(known[0][1], comm.rank, here, _end_with, self._on_signal, self._say_where)
        threading.excepthook = lambda args: self.fail(args.exc_value)
        self.ending = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._interrupt)

    def ended(self, error: BaseException | None) -> int:
        """The exit code after ``error``; does not return if the job cannot end in order."""
        if isinstance(error, TParallelError):
            return self.leave(2, f"{type(error).__name__}: {error}", 3 * PATIENCE)
        if isinstance(error, KeyboardInterrupt):
            self.leave(INTERRUPTED, f"interrupted{_in_place()}", PATIENCE)
            _end_with(INTERRUPTED)  # MPI_Finalize may wait for messages that were cut off
        if isinstance(error, SystemExit):
            text = error.code if isinstance(error.code, str) else ""
            code = 1 if text else int(error.code or 0)
            return self.leave(code, text, PATIENCE if code else float("inf"))
        self.fail(error)

    def leave(self, code: int, text: str, patience: float) -> int:
        """End in agreement: what all ranks say is said once.  Without agreement, end the job."""
        everybody = self.comm.Ibarrier()
        end, pause = time.monotonic() + patience, 0.0002
        while not everybody.Test():
            if time.monotonic() > end:
                if text and self.host.first():
                    _write(f"{self._rank()}: {text}")
                self._end(code)
            time.sleep(pause)
            pause = min(2 * pause, 0.01)
        texts = self.comm.allgather(text)
        if self.comm.rank == 0:
            for said in filter(None, dict.fromkeys(texts)):
                _write(said)
        self.comm.Barrier()  # it has spoken before any rank ends
        self.ending = True
        return code

    def fail(self, error: BaseException | None) -> NoReturn:
        """Say what happened, in full on the first rank that comes here, and end the whole job."""
        self.ending = True
        time.sleep(0.3 * min(self.place_of_host, 4))  # hosts that fail together: one speaks
        if self.host.first():
            trace = "".join(traceback.format_exception(error)).rstrip()
            _write(f"{self._rank()} failed{_in_place()}\n{trace}")
            self._end(1)
        _write(f"{self._rank()} failed{_in_place()}: {type(error).__name__}")
        time.sleep(5)  # the first one ends this rank too
        self._end(1)

    def watch(self, timeout: float) -> None:
        """From now on, somebody must move within ``timeout`` seconds."""
        global _watchdog
        _watchdog = Watchdog(timeout, lambda: self._hung(timeout))

    def _hung(self, timeout: float) -> None:
        """This rank has not moved for too long: all say where they are; then the job ends."""
        if self.host.first():
            _write(f"no step was finished for {timeout:g} s (--timeout). All ranks are here:")
            self._say_where()
            self.host.ask_others()
            time.sleep(1)
            self._end(1)

    def _say_where(self) -> None:
        _write(f"{self._rank()}{_in_place()}\n{main_stack()}")

    def _rank(self) -> str:
        return f"rank {self.comm.rank}/{self.comm.size} on {self.name}"

    def _interrupt(self, number: int, frame: object) -> None:
        signals.heard += 1
        if not self.ending:  # a launcher may end the ranks of a job that ends; that is no news
            raise KeyboardInterrupt

    def _on_signal(self) -> None:
        """The main thread may wait inside MPI, where no handler runs: then end from here."""
        signals.came += 1

        def end_if_unheard() -> None:
            if signals.heard == signals.came or (signals.may_wait and signals.came == 1):
                return
            if self.host.first():
                _write(f"interrupted{_in_place()}")
            self._end(INTERRUPTED)

        watch = threading.Timer(PATIENCE, end_if_unheard)
        watch.daemon = True
        watch.start()

    def _end(self, code: int) -> NoReturn:
        """End every rank now, from any thread; on one host the job's exit code is ``code``.

        Abort alone would do, but most launchers then report another code, and print a page.
        """
        time.sleep(NOISE)
        remove(segments())
        if "OMPI_COMM_WORLD_SIZE" not in os.environ:  # Open MPI's mpirun ends the others itself
            self.host.end_others(code)
            if not self.one_host:
                threading.Timer(1, os._exit, (code,)).start()  # were Abort to wait for a thread
                self.comm.Abort(code)
        os._exit(code)


def _end_with(code: int) -> NoReturn:
    """Another rank ends the job: follow it."""
    remove(segments())
    sign_off()
    os._exit(code)


def _in_place() -> str:
    return f" in {_place}" if _place else ""
