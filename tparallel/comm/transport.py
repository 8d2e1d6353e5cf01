"""How an array reaches MPI: ``Direct`` hands MPI the array itself, ``Staged`` (staged.py) a copy in
pinned host memory, ``Ipc`` (ipc.py) nothing: ranks of one node read each other's device memory.

NumPy arrays always go direct.  CuPy arrays go direct where the MPI library is CUDA-aware, and
staged where it is not: a wrong "yes" would be a segmentation fault.  ``TPARALLEL_TRANSPORT``
chooses another.  Three rules hold for all and live only here: an array is C-contiguous (MPI would
accept Fortran order and deliver it transposed), half precision travels as 16-bit integers (no MPI
knows bfloat16, and nothing here asks MPI for a sum of it), and all kernels that write it are
finished before MPI looks at it.
"""

import ctypes
import os
import sys
import time
from collections.abc import Callable
from functools import cache

import numpy as np
from mpi4py import MPI

from ..backend import name as backend
from ..backend import synchronize, xp
from ..errors import ConfigError

DTYPES = ("float32", "float64", "bfloat16", "float16", "int32", "int64", "uint8")
TRANSPORTS = {
    "direct": "MPI is handed the arrays",
    "staged": "MPI is handed copies in pinned host memory",
    "ipc": "ranks on one node read each other's device memory",
}
KNOWN = {np.dtype(name) for name in DTYPES if name != "bfloat16"}  # found faster than by name
EXCHANGE = 32_000  # the tag of messages that are part of a collective; every MPI has tags to 32767
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


class All:
    """Several requests as one."""

    def __init__(self, requests: list):
        self.requests = requests

    def Test(self) -> bool:
        return MPI.Request.Testall(self.requests)

    def Wait(self) -> None:
        MPI.Request.Waitall(self.requests)


class Direct:
    """MPI reads and writes the arrays in place."""

    def __init__(self, comm, naps: bool = False, synchronize: Callable = synchronize):
        self.comm, self.naps, self.synchronize = comm, naps, synchronize

    def all_to_all(self, send, send_counts, recv, recv_counts) -> Moving:
        """Cut ``send`` into consecutive pieces, one per rank; receive everybody's piece for me.
        What I send to myself stays in ``send``: who wants it in ``recv`` copies it."""
        check(send)
        check(recv)
        return self._exchange(cut(send, send_counts), cut(recv, recv_counts))

    def all_gather(self, send, recv, recv_counts) -> Moving:
        """Everybody's ``send``, one after the other, in ``recv``; None: mine is there already."""
        if send is not None:
            check(send)
            cut(recv, recv_counts)[self.comm.rank][...] = send.reshape(-1)
        check(recv)
        whole = cut(recv, recv_counts)
        return self._exchange([whole[self.comm.rank]] * len(whole), whole)

    def broadcast(self, x, root: int) -> Moving:
        return self._moving(self.comm.Ibcast(*self._ready(x), root), x)

    def send(self, x, to: int, tag: int) -> Moving:
        return self._moving(self.comm.Isend(*self._ready(x), to, tag), x)

    def receive(self, x, source: int, tag: int) -> Moving:
        return self._moving(self.comm.Irecv(*self._ready(x), source, tag), x)

    def close(self) -> None:
        """Nothing is kept between two calls."""

    def _exchange(self, send: list, recv: list) -> Moving:
        """Piece r of the one to rank r, piece r of the other from it: messages between pairs, which
        move no byte that stays and cost less than a call of MPI for all (``bench collectives``)."""
        n, me = self.comm.size, self.comm.rank
        others = [(me + k) % n for k in range(1, n)]
        to, source = ([r for r in others if pieces[r].size] for pieces in (send, recv))
        ready = self._ready(*[send[r] for r in to], *[recv[r] for r in source])
        requests = [self.comm.Isend(x, r, EXCHANGE) for x, r in zip(ready, to)]
        requests += [self.comm.Irecv(x, r, EXCHANGE) for x, r in zip(ready[len(to) :], source)]
        return self._moving(All(requests), ready)

    def _moving(self, request, *arrays) -> Moving:
        return Moving(request, arrays, self.naps)

    def _ready(self, *arrays) -> list:
        """The arrays as MPI may look at them, now: one wait for all of them."""
        for x in arrays:
            check(x)
        self.synchronize()
        return [x.view(np.uint16) if x.dtype.itemsize == 2 else x for x in arrays]


def check(x) -> None:
    """Errors: what MPI would deliver wrongly, or not at all."""
    if not x.flags.c_contiguous:
        raise ValueError(
            f"MPI moves C-contiguous arrays: shape {x.shape} has strides {x.strides}. "
            "Pass xp.ascontiguousarray(x)."
        )
    if x.dtype not in KNOWN and x.dtype.name not in DTYPES:
        raise TypeError(
            f"MPI moves {', '.join(DTYPES)}: this array is {x.dtype.name}. Convert it first."
        )


def make_transport(comm, crowded: bool):
    """``Direct``, ``Staged`` or ``Ipc`` (see ``chosen``).  ``crowded``: more ranks than cores on
    this node.  Only MPICH's waiting ranks need to nap."""
    naps = crowded and MPI.get_vendor()[0] == "MPICH"
    name, why = chosen()
    if name == "direct":
        return Direct(comm, naps)
    from .ipc import Ipc  # which imports from here
    from .staged import Staged

    _say_once(name, why)
    return Ipc(comm, naps) if name == "ipc" and comm.size > 1 else Staged(comm, naps)


def chosen() -> tuple[str, str]:
    """The transport's name, and why this one.  Errors: ConfigError for one that cannot be."""
    wanted = os.environ.get("TPARALLEL_TRANSPORT", "")
    if wanted not in ("", *TRANSPORTS) or (wanted not in ("", "direct") and xp is np):
        raise ConfigError(
            f"TPARALLEL_TRANSPORT must be one of {', '.join(TRANSPORTS)}, and direct for NumPy "
            f"arrays: it is {wanted!r}, backend {backend}. Unset it."
        )
    if wanted:
        return wanted, f"TPARALLEL_TRANSPORT={wanted}"
    if xp is np:
        return "direct", "NumPy arrays lie in the host's memory"
    aware, why = cuda_aware()
    return ("direct" if aware else "staged"), why


@cache
def _say_once(name: str, why: str) -> None:
    if MPI.COMM_WORLD.rank == 0:
        print(f"transport: {TRANSPORTS[name]} ({why})", file=sys.stderr, flush=True)


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


def cut(x, counts) -> list:
    """Consecutive pieces of so many elements, as views."""
    flat, pieces, start = x.reshape(-1), [], 0
    for count in counts:
        pieces.append(flat[start : start + count])
        start += count
    return pieces
