"""How an array reaches MPI: ``Direct`` hands MPI the array itself, ``Staged`` a copy on the host.

NumPy arrays always go direct.  CuPy arrays go direct where the MPI library is CUDA-aware, and
through pinned host memory where it is not: a wrong "yes" would be a segmentation fault.  Three
rules hold for both and live only here: an array is C-contiguous (MPI would accept Fortran order
and deliver it transposed), its dtype is one that MPI can sum, and all kernels that write it are
finished before MPI looks at it.
"""

import ctypes
import os
import time

import numpy as np
from mpi4py import MPI

from ..backend import synchronize, to_host, xp

DTYPES = ("float32", "float64", "int32", "int64", "uint8")
NAP = 50e-6  # seconds between two looks at a request, where ranks outnumber cores


class Direct:
    """MPI reads and writes the arrays in place."""

    def __init__(self, comm, naps: bool = False):
        self.comm, self.naps = comm, naps

    def all_to_all(self, send, send_counts, recv, recv_counts) -> None:
        """Cut ``send`` into consecutive pieces, one per rank; receive everybody's piece for me."""
        out = [self._ready(send), (send_counts, _starts(send_counts))]
        into = [self._ready(recv), (recv_counts, _starts(recv_counts))]
        self._finish(self.comm.Ialltoallv, out, into)

    def all_gather(self, send, recv, recv_counts) -> None:
        into = [self._ready(recv), (recv_counts, _starts(recv_counts))]
        self._finish(self.comm.Iallgatherv, self._ready(send), into)

    def broadcast(self, x, root: int) -> None:
        self._finish(self.comm.Ibcast, self._ready(x), root)

    def start_send(self, x, to: int, tag: int):
        """A posted send; ``x`` must stay alive and unchanged until it is waited for."""
        return self.comm.Isend(self._ready(x), to, tag)

    def receive(self, x, source: int, tag: int) -> None:
        self._finish(self.comm.Irecv, self._ready(x), source, tag)

    def wait(self, request) -> None:
        """MPICH's waiting ranks spin on a core that a working rank may need: look, then nap."""
        if self.naps:
            while not request.Test():
                time.sleep(NAP)
        else:
            request.Wait()

    def _finish(self, verb, *arguments) -> None:
        self.wait(verb(*arguments))

    @staticmethod
    def _ready(x):
        if not x.flags.c_contiguous:
            raise ValueError(
                f"MPI needs a C-contiguous array: shape {x.shape}, strides {x.strides}"
            )
        if x.dtype.name not in DTYPES:
            raise TypeError(f"MPI cannot sum {x.dtype.name}: use one of {', '.join(DTYPES)}")
        synchronize()
        return x


class Staged:
    """The same verbs for arrays that MPI cannot see: copy to the host, move, copy back."""

    def __init__(self, comm, naps: bool = False):
        self.host = Direct(comm, naps)

    def all_to_all(self, send, send_counts, recv, recv_counts) -> None:
        into = np.empty(recv.shape, recv.dtype)
        self.host.all_to_all(to_host(send), send_counts, into, recv_counts)
        recv.set(into)

    def all_gather(self, send, recv, recv_counts) -> None:
        into = np.empty(recv.shape, recv.dtype)
        self.host.all_gather(to_host(send), into, recv_counts)
        recv.set(into)

    def broadcast(self, x, root: int) -> None:
        copy = to_host(x)
        self.host.broadcast(copy, root)
        x.set(copy)

    def start_send(self, x, to: int, tag: int):
        return self.host.start_send(to_host(x), to, tag)

    def receive(self, x, source: int, tag: int) -> None:
        into = np.empty(x.shape, x.dtype)
        self.host.receive(into, source, tag)
        x.set(into)

    def wait(self, request) -> None:
        self.host.wait(request)


def make_transport(comm, crowded: bool) -> Direct | Staged:
    """``crowded``: more ranks than cores on this node.  Only MPICH's waiting ranks need to nap."""
    naps = crowded and MPI.get_vendor()[0] == "MPICH"
    return Direct(comm, naps) if xp is np or cuda_aware()[0] else Staged(comm, naps)


def cores() -> int:
    """Cores that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def cuda_aware() -> tuple[bool, str]:
    """Can MPI read device memory, and how do we know?  Never guesses yes.

    Asked in this order: the user (``TPARALLEL_CUDA_AWARE``), the MPI-4.1 memory kinds of the world
    communicator (not of a Session: Open MPI's agrees to anything), the library's own query.
    """
    said = os.environ.get("TPARALLEL_CUDA_AWARE")
    if said is not None:
        return said == "1", f"TPARALLEL_CUDA_AWARE={said}"
    kinds = MPI.COMM_WORLD.Get_info().Get("mpi_memory_alloc_kinds") or ""
    if any(kind.strip().startswith("cuda") for kind in kinds.split(",")):
        return True, f"mpi_memory_alloc_kinds={kinds}"
    library = ctypes.CDLL(MPI.__file__)  # its symbols include those of the MPI that it loaded
    query = getattr(library, "MPIX_Query_cuda_support", None)
    if query is None:
        return False, f"mpi_memory_alloc_kinds={kinds or 'absent'}, no MPIX_Query_cuda_support"
    return bool(query()), f"MPIX_Query_cuda_support()={query()}"


def _starts(counts):
    return [sum(counts[:i]) for i in range(len(counts))]
