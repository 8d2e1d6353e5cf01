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
WIDE = {np.dtype(name) for name in DTYPES if not name.endswith("float16")}
EXCHANGE = 32_000  # the tag of messages that are part of a collective; every MPI has tags to 32767
NAP = 50e-6  # seconds between two looks at a request, where ranks outnumber cores


class Moving:
    """Posted MPI operations; ``wait`` returns when their arrays may be read and written again.

    MPICH's waiting ranks spin on a core that a working rank may need: ``naps`` between two looks.
    """

    __slots__ = ("after", "naps", "requests")

    def __init__(self, requests: list, naps: bool, after: Callable | None = None):
        self.requests, self.naps, self.after = requests, naps, after

    def test(self) -> bool:
        return MPI.Request.Testall(self.requests)

    def wait(self) -> None:
        if self.naps:
            while not self.test():
                time.sleep(NAP)
        else:
            for request in self.requests:
                request.Wait()
        if self.after:
            self.after()


class Direct:
    """MPI reads and writes the arrays in place."""

    def __init__(self, comm, naps: bool = False, synchronize: Callable = synchronize):
        self.comm, self.naps, self.synchronize = comm, naps, synchronize
        self.others = [(comm.rank + k) % comm.size for k in range(1, comm.size)]

    def exchange(self, send, send_spans: tuple, recv, recv_spans: tuple) -> Moving:
        """Along dim 0, ``send_spans[r]`` of ``send`` goes to every other rank r, and what it sends
        comes to ``recv_spans[r]`` of ``recv``.

        Messages between pairs move no byte that stays, and cost less than a call of MPI for all.
        """
        send, recv = self._ready(send, recv)
        going = [(r, send[send_spans[r]]) for r in self.others]
        coming = [(r, recv[recv_spans[r]]) for r in self.others]
        self.synchronize()
        requests = [self.comm.Isend(x, r, EXCHANGE) for r, x in going if x.size]
        requests += [self.comm.Irecv(x, r, EXCHANGE) for r, x in coming if x.size]
        return Moving(requests, self.naps)

    def swap(self, send, recv) -> Moving:
        """Of two ranks: all of ``send`` goes to the other, ``recv`` is filled by it."""
        if send.dtype not in WIDE or not send.flags.c_contiguous:
            send, recv = self._ready(send, recv)
        (other,) = self.others
        self.synchronize()
        requests = [self.comm.Isend(send, other, EXCHANGE)] if send.size else []
        if recv.size:
            requests.append(self.comm.Irecv(recv, other, EXCHANGE))
        return Moving(requests, self.naps)

    def broadcast(self, x, root: int) -> Moving:
        return self._moving(self.comm.Ibcast, x, root)

    def send(self, x, to: int, tag: int) -> Moving:
        return self._moving(self.comm.Isend, x, to, tag)

    def receive(self, x, source: int, tag: int) -> Moving:
        return self._moving(self.comm.Irecv, x, source, tag)

    def close(self) -> None:
        """Nothing is kept between two calls."""

    def _moving(self, call: Callable, x, *where: int) -> Moving:
        x, _ = self._ready(x, x)
        self.synchronize()
        return Moving([call(x, *where)], self.naps)

    def _ready(self, x, like) -> tuple:
        """An array, and one ``like`` it, as MPI may look at them."""
        check(x)
        if x.dtype.itemsize == 2:
            x, like = x.view(np.uint16), like.view(np.uint16)
        return x, like


def check(x) -> None:
    """Errors: what MPI would deliver wrongly, or not at all."""
    if not x.flags.c_contiguous:
        raise ValueError(
            f"MPI moves C-contiguous arrays: shape {x.shape} has strides {x.strides}. "
            "Pass xp.ascontiguousarray(x)."
        )
    if x.dtype not in WIDE and x.dtype.name not in DTYPES:
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
