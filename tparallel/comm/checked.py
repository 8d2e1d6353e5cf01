"""Do all ranks make the same call, and does every message have its other end?

Asked before every collective and with every message when ``TPARALLEL_CHECK=1`` (``--check``).  A
collective that only some ranks reach hangs; different roots deliver wrong data in silence; a
message of another shape is cut off, or never found.  Here the ranks tell each other first what
they are about to call and from which line.  If they disagree, or one does not come within
``TPARALLEL_CHECK_TIMEOUT`` seconds (30), the job ends with a table of who was where.

Communicates:  a statement of 300 bytes to every rank of the axis per collective, one with every
               message; on a duplicate of the communicator, so that they meet no others
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from mpi4py import MPI

from .board import WIDTH, Board
from .transport import Moving

LATER = 2  # seconds by which who misses a message speaks before who waits in a collective
PACKAGE = Path(__file__).parent
STATEMENT = 1  # added to a message's tag for the tag of its statement: collectives use tag 0


class Checker:
    """One per communicator.  ``board``, if there is one, shows where all ranks of the job are."""

    def __init__(self, comm, axis: str, board: Board | None = None):
        self.comm, self.axis, self.board, self.calls = comm.Dup(), axis, board, 0
        self.timeout = float(os.environ.get("TPARALLEL_CHECK_TIMEOUT", "30"))

    def meet(self, call: str) -> None:
        """Returns when every rank of the axis has announced this same call."""
        self.calls += 1
        mine = _statement(call)
        everyone = np.zeros((self.comm.size, WIDTH), np.uint8)
        everyone[self.comm.rank] = mine
        others = [r for r in range(self.comm.size) if r != self.comm.rank]
        requests = [self.comm.Irecv(everyone[r], r, 0) for r in others]
        requests += [self.comm.Isend(mine, r, 0) for r in others]
        why = f"Collective {self.calls} over {self.axis}: "
        with _Shown(self.board, f"{_text(mine)}, over {self.axis}"):
            if not self._within(lambda: MPI.Request.Testall(requests)):
                why += f"not every rank came within {self.timeout:g} s."
                turn = LATER + self._came_before_me(everyone)
                self._stop(why, self._rows(everyone), turn)
        if (everyone != mine).any():
            why += "the ranks disagree."
            self._stop(why, self._rows(everyone), self._came_before_me(everyone))

    def sending(self, moving: Moving, x, to: int, tag: int, what: str) -> Callable[[], None]:
        """Announce a message that is under way; returns what waits until it has been received."""
        mine = _statement(f"send {x.dtype.name}{list(x.shape)} {what}")
        announced = self.comm.Isend(mine, to, tag + STATEMENT)

        def wait():
            with _Shown(self.board, self._waits(mine, "to", to, tag)):
                if not self._within(lambda: announced.Test() and moving.test()):
                    self._missing(mine, "to", to, tag, "takes")
            moving.wait()

        return wait

    def receiving(self, x, source: int, tag: int, what: str) -> Callable[[], None]:
        """Returns what waits for the announcement of a message, and compares it with ``x``."""
        mine = _statement(f"recv {x.dtype.name}{list(x.shape)} {what}")
        theirs = np.zeros(WIDTH, np.uint8)
        announced = self.comm.Irecv(theirs, source, tag + STATEMENT)

        def wait():
            with _Shown(self.board, self._waits(mine, "from", source, tag)):
                if not self._within(announced.Test):
                    announced.Cancel()
                    self._missing(mine, "from", source, tag, "sends")
            if _call(mine)[1:] != _call(theirs)[1:]:
                names = (f"{self.axis} rank {r}" for r in (self.comm.rank, source))
                rows = dict(zip(names, (_text(mine), _text(theirs))))
                why = f"Message {tag} over {self.axis}: its two ends disagree."
                self._stop(why, rows)

        return wait

    def close(self) -> None:
        """Errors: the job ends with a table if there are messages that nobody has taken."""
        self.comm.Barrier()
        rows = {
            f"{self.axis} rank {r} has sent": f"{t}, tag {tag}" for r, tag, t in self._untaken()
        }
        if rows:
            self._stop(f"Messages over {self.axis} that nobody takes:", rows)
        self.comm.Free()

    def _within(self, done: Callable[[], bool]) -> bool:
        """Wait until ``done``; False if that takes longer than the timeout."""
        deadline, nap = time.monotonic() + self.timeout, 0.0
        while not done():
            if time.monotonic() > deadline:
                return False
            time.sleep(nap)
            nap = min(nap + 1e-5, 1e-3)
        return True

    def _waits(self, mine, way: str, peer: int, tag: int) -> str:
        return f"{_text(mine)}, tag {tag} {way} {self.axis} rank {peer}"

    def _missing(self, mine, way: str, peer: int, tag: int, does: str) -> None:
        why = (
            f"Message {tag} over {self.axis}: {self.axis} rank {peer} {does} none within "
            f"{self.timeout:g} s."
        )
        rows = {f"{self.axis} rank {self.comm.rank}": self._waits(mine, way, peer, tag)}
        for source, other, said in self._untaken():
            name = f"{self.axis} rank {source}"
            rows[f"{name} has sent"] = f"{said}, tag {other}: nobody takes it"
        self._stop(why, rows, turn=LATER * MPI.COMM_WORLD.rank / MPI.COMM_WORLD.size)

    def _untaken(self):
        """Messages that have been announced to this rank and that it has not asked for."""
        status = MPI.Status()
        while self.comm.Iprobe(status=status):
            said = np.zeros(WIDTH, np.uint8)
            self.comm.Recv(said, status.source, status.tag)
            if status.tag:
                yield status.source, status.tag - STATEMENT, _text(said)

    def _rows(self, everyone) -> dict[str, str]:
        return {f"{self.axis} rank {r}": _text(row) or "-" for r, row in enumerate(everyone)}

    def _came_before_me(self, everyone) -> int:
        return sum(bool(row.any()) for row in everyone[: self.comm.rank])

    def _stop(self, why: str, rows: dict[str, str], turn: float = 0) -> None:
        """Print a table and end the job.  One table, not n: the first to speak ends it, and ranks
        that may have noticed together take turns."""
        time.sleep(turn)
        lines = [f"\n{why}", *(f"    {name}: {said}" for name, said in rows.items())]
        if self.board:
            lines += ["  All ranks of this node:"]
            lines += [f"    rank {rank} {text}" for rank, text in self.board.read().items()]
        print("\n".join(lines), file=sys.stderr, flush=True)
        time.sleep(0.3)  # let the table reach the launcher before the job is torn down
        self.comm.Abort(1)


class _Shown:
    """On the board while the block runs, and afterwards that it has been left."""

    def __init__(self, board: Board | None, text: str):
        self.board, self.text = board, text

    def __enter__(self) -> None:
        if self.board:
            self.board.write(f"in {self.text}")

    def __exit__(self, kind, error, trace) -> None:
        if self.board:
            self.board.write(f"has left {self.text}")


def wanted() -> bool:
    """Is checking asked for?  Read when communicators are made."""
    return os.environ.get("TPARALLEL_CHECK") == "1"


def _statement(call: str) -> np.ndarray:
    said = np.zeros(WIDTH, np.uint8)
    text = f"{call}\t{_call_site()}".encode()[:WIDTH]
    said[: len(text)] = np.frombuffer(text, np.uint8)
    return said


def _text(statement) -> str:
    call, _, site = bytes(statement).rstrip(b"\0").decode(errors="replace").partition("\t")
    return f"{call}  at {site}" if call else ""


def _call(statement) -> list[str]:
    """``["send", "float64[2,", "3]", "x"]``: the two ends of a message differ in the first word."""
    return bytes(statement).partition(b"\t")[0].decode(errors="ignore").split()


def _call_site() -> str:
    """The nearest line outside this package: ``tensor_parallel/mlp.py:21``."""
    frame = sys._getframe(2)
    while frame.f_back and PACKAGE in Path(frame.f_code.co_filename).parents:
        frame = frame.f_back
    path = Path(frame.f_code.co_filename)
    return f"{path.parent.name}/{path.name}:{frame.f_lineno}"
