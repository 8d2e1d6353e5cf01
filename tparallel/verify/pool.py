"""Ranks that wait for work: hundreds of cases in one job, without starting it hundreds of times.

Rank 0 decides; ``pool.run(n, work, *args)`` calls ``work(comm, *args)`` on the first n ranks, with
a communicator of exactly these, and returns what it returns on rank 0.  The others sleep: a rank
that waits inside MPI would keep a core busy.
"""

import time
from collections.abc import Callable
from typing import Any

from mpi4py import MPI

NAP = 1e-3  # seconds between two looks for work


class Pool:
    """Made on every rank: ``with Pool(comm) as pool: if pool.leads: ...``; the others serve."""

    def __init__(self, comm: Any):
        self.comm, self.leads = comm.Dup(), comm.rank == 0
        self._first: dict[int, Any] = {}  # n -> communicator of ranks 0 ... n - 1

    def __enter__(self) -> "Pool":
        if not self.leads:
            self._serve()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self.leads and not isinstance(error, Exception):
            self._tell(self.comm.size, None)
        for comm in (*self._first.values(), self.comm):
            if comm != MPI.COMM_NULL and error is None:
                comm.Free()

    def run(self, n: int, work: Callable, *args: Any) -> Any:
        """On rank 0 only.  ``work`` is a function at the top of a module, args plain values."""
        self._tell(n, (n, work, args))
        return work(self._comm(n), *args)

    def _tell(self, n: int, message: tuple | None) -> None:
        for request in [self.comm.isend(message, rank) for rank in range(1, n)]:
            request.wait()

    def _serve(self) -> None:
        while True:
            while not self.comm.iprobe(0):
                time.sleep(NAP)
            message = self.comm.recv(source=0)
            if message is None:
                return
            n, work, args = message
            work(self._comm(n), *args)

    def _comm(self, n: int) -> Any:
        """Made when first wanted; only its own ranks take part."""
        if n not in self._first:
            group = self.comm.group.Incl(range(n))
            self._first[n] = self.comm.Create_group(group)
            group.Free()
        return self._first[n]
