"""Do all ranks make the same call?  Asked before every collective when ``TPARALLEL_CHECK=1``.

A collective that only some ranks reach hangs; different roots deliver wrong data in silence.
Here every rank first tells every other what it is about to call and from which line.  If they
disagree, or one does not come, the job ends with a table of who was where.
"""

import sys
import time
from pathlib import Path

import numpy as np
from mpi4py import MPI

WIDTH = 300  # bytes of a statement
PACKAGE = Path(__file__).parent


class Checker:
    """One per communicator, on a duplicate of it, so that its messages meet no others."""

    def __init__(self, comm, axis: str, timeout: float = 30.0):
        self.comm, self.axis, self.timeout, self.calls = comm.Dup(), axis, timeout, 0

    def meet(self, call: str) -> None:
        """Returns when every rank of the axis has announced this same call."""
        self.calls += 1
        said = f"{call}\t{_call_site()}".encode()[:WIDTH]
        everyone = np.zeros((self.comm.size, WIDTH), np.uint8)
        everyone[self.comm.rank, : len(said)] = np.frombuffer(said, np.uint8)
        mine = everyone[self.comm.rank].copy()
        others = [r for r in range(self.comm.size) if r != self.comm.rank]
        requests = [self.comm.Irecv(everyone[r], r) for r in others]
        requests += [self.comm.Isend(mine, r) for r in others]
        deadline, nap = time.monotonic() + self.timeout, 0.0
        while not MPI.Request.Testall(requests):
            if time.monotonic() > deadline:
                self._stop(everyone, f"not every rank came within {self.timeout:g} s")
            time.sleep(nap)
            nap = min(nap + 1e-5, 1e-3)
        if (everyone != mine).any():
            self._stop(everyone, "the ranks disagree")

    def _stop(self, everyone, why: str) -> None:
        said = [bytes(row).rstrip(b"\0").decode(errors="replace") for row in everyone]
        came_before_me = sum(bool(s) for s in said[: self.comm.rank])
        time.sleep(came_before_me)  # one table, not n: the first to print ends the job
        lines = [f"\nCollective {self.calls} over {self.axis}: {why}."]
        for rank, s in enumerate(said):
            call, _, site = s.partition("\t")
            lines.append(f"    {self.axis} rank {rank}: " + (f"{call}  at {site}" if s else "-"))
        print("\n".join(lines), file=sys.stderr, flush=True)
        time.sleep(0.3)  # let the table reach the launcher before the job is torn down
        self.comm.Abort(1)


def _call_site() -> str:
    """The nearest line outside this package: ``tensor_parallel/mlp.py:21``."""
    frame = sys._getframe(2)
    while frame.f_back and PACKAGE in Path(frame.f_code.co_filename).parents:
        frame = frame.f_back
    path = Path(frame.f_code.co_filename)
    return f"{path.parent.name}/{path.name}:{frame.f_lineno}"
