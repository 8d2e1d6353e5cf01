"""How an array reaches MPI: ``Direct`` hands MPI the array itself, ``Staged`` a copy on the host.

NumPy arrays always go direct.  CuPy arrays go direct where the MPI library is CUDA-aware, and
through pinned host memory where it is not: a wrong "yes" would be a segmentation fault.  Three
rules hold for both and live only here: an array is C-contiguous (MPI would accept Fortran order
and deliver it transposed), half precision travels as 16-bit integers (no MPI knows bfloat16, and
nothing here asks MPI for a sum of it), and all kernels that write it are finished before MPI
looks at it.
"""

import ctypes
import os
import time

import numpy as np
from mpi4py import MPI

from ..backend import synchronize, to_host, xp

DTYPES = ("float32", "float64", "bfloat16", "float16", "int32", "int64", "uint8")
NAP = 50e-6  # seconds between two looks at a request, where ranks outnumber cores


class Moving:
    """A posted MPI operation; ``wait`` returns when its arrays may be read and written again."""

    def __init__(self, request, arrays, naps: bool, after=None):
        self.request, self.arrays, self.naps, self.after = request, arrays, naps, after

    def test(self) -> bool:
        return self.request.Test()

    def wait(self) -> None:
        """MPICH's waiting ranks spin on a core that a working rank may need: look, then nap."""
        if self.naps:
            while not self.request.Test():
                time.sleep(NAP)
        else:
            self.request.Wait()
        if self.after:
            self.after()


class Direct:
    """MPI reads and writes the arrays in place."""

    def __init__(self, comm, naps: bool = False):
        self.comm, self.naps = comm, naps

    def all_to_all(self, send, send_counts, recv, recv_counts) -> Moving:
        """Cut ``send`` into consecutive pieces, one per rank; receive everybody's piece for me."""
        out = [_ready(send), (send_counts, _starts(send_counts))]
        into = [_ready(recv), (recv_counts, _starts(recv_counts))]
        return self._moving(self.comm.Ialltoallv(out, into), send, recv)

    def all_gather(self, send, recv, recv_counts) -> Moving:
        """Everybody's ``send``, one after the other, in ``recv``."""
        into = [_ready(recv), (recv_counts, _starts(recv_counts))]
        return self._moving(self.comm.Iallgatherv(_ready(send), into), send, recv)

    def broadcast(self, x, root: int) -> Moving:
        return self._moving(self.comm.Ibcast(_ready(x), root), x)

    def send(self, x, to: int, tag: int) -> Moving:
        return self._moving(self.comm.Isend(_ready(x), to, tag), x)

    def receive(self, x, source: int, tag: int) -> Moving:
        return self._moving(self.comm.Irecv(_ready(x), source, tag), x)

    def _moving(self, request, *arrays) -> Moving:
        return Moving(request, arrays, self.naps)


class Staged:
    """The same verbs for arrays that MPI cannot see: copy to the host, move, copy back."""

    def __init__(self, comm, naps: bool = False):
        self.host = Direct(comm, naps)

    def all_to_all(self, send, send_counts, recv, recv_counts) -> Moving:
        into = np.empty(recv.shape, recv.dtype)
        moving = self.host.all_to_all(to_host(send), send_counts, into, recv_counts)
        return _then(moving, lambda: recv.set(into))

    def all_gather(self, send, recv, recv_counts) -> Moving:
        into = np.empty(recv.shape, recv.dtype)
        moving = self.host.all_gather(to_host(send), into, recv_counts)
        return _then(moving, lambda: recv.set(into))

    def broadcast(self, x, root: int) -> Moving:
        copy = to_host(x)
        return _then(self.host.broadcast(copy, root), lambda: x.set(copy))

    def send(self, x, to: int, tag: int) -> Moving:
        return self.host.send(to_host(x), to, tag)

    def receive(self, x, source: int, tag: int) -> Moving:
        into = np.empty(x.shape, x.dtype)
        return _then(self.host.receive(into, source, tag), lambda: x.set(into))


def _then(moving: Moving, after) -> Moving:
    moving.after = after
    return moving


def _ready(x):
    """The array, if MPI may look at it now."""
    if not x.flags.c_contiguous:
        raise ValueError(
            f"MPI moves C-contiguous arrays: shape {x.shape} has strides {x.strides}. "
            "Pass xp.ascontiguousarray(x)."
        )
    if x.dtype.name not in DTYPES:
        raise TypeError(
            f"MPI moves {', '.join(DTYPES)}: this array is {x.dtype.name}. Convert it first."
        )
    synchronize()
    return x.view(xp.uint16) if x.dtype.itemsize == 2 else x


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
