"""The verbs for ranks of one node that can read each other's device memory (CUDA IPC): no MPI
library needs to know of the device, and nothing goes through the host.

Every rank has a *window*, memory of its own that the others have opened.  A collective is: copy
into one's own window, wait for everybody, copy one's part out of the others' windows, wait for
everybody.  Messages between two ranks still go through the host (``staged.py``).

The window is not from CuPy's pool: a handle of pooled memory stands for the whole chunk.  Waiting
is done by MPI's barrier: processes that share a device take turns on it, so that a kernel that
waited for another rank's would never end.
"""

from mpi4py import MPI

from ..backend import synchronize, xp
from ..errors import ConfigError
from .staged import Staged
from .transport import Moving, check


class Window:
    """The windows of all ranks of ``comm``, of one size; made anew when more is needed."""

    def __init__(self, comm):
        self.comm, self.size = comm, 0
        self.memory, self.opened = None, []

    def of(self, rank: int, dtype, count: int):
        """The first ``count`` numbers of a rank's window, as an array."""
        at = xp.cuda.MemoryPointer(self._mapped(rank), 0)
        return xp.ndarray((count,), dtype, at)

    def grow(self, nbytes: int) -> None:
        """Room for so many bytes, which every rank asks for alike.

        Communicates:  an allgather of handles, when the windows are too small
        """
        if nbytes <= self.size:
            return
        self.close()
        cuda = xp.cuda.runtime
        self.size = 1 << max(20, (nbytes - 1).bit_length())
        self.memory = xp.cuda.Memory(self.size)
        handles = self.comm.allgather(bytes(cuda.ipcGetMemHandle(self.memory.ptr)))
        self.opened = [
            self.memory.ptr
            if rank == self.comm.rank
            else cuda.ipcOpenMemHandle(handle, cuda.cudaIpcMemLazyEnablePeerAccess)
            for rank, handle in enumerate(handles)
        ]

    def _mapped(self, rank: int):
        if rank == self.comm.rank:
            return self.memory
        return xp.cuda.UnownedMemory(self.opened[rank], self.size, self)

    def close(self) -> None:
        """Every rank lets go of the others' windows before any of them gives its own back."""
        for rank, pointer in enumerate(self.opened):
            if rank != self.comm.rank:
                xp.cuda.runtime.ipcCloseMemHandle(pointer)
        self.opened = []
        self.comm.Barrier()
        self.memory, self.size = None, 0


class Done(Moving):
    """A collective that runs when it is awaited: all ranks await in the same order."""

    def __init__(self, work, *arrays):
        self.work, self.arrays = work, arrays

    def wait(self) -> None:
        self.work()


class Ipc(Staged):
    """Errors: ConfigError unless all ranks of ``comm`` are on one node."""

    def __init__(self, comm, naps: bool = False):
        super().__init__(comm, naps)
        node = comm.Split_type(MPI.COMM_TYPE_SHARED)
        alone, whole = node.size, comm.size
        node.Free()
        if alone < whole:
            raise ConfigError(
                f"TPARALLEL_TRANSPORT=ipc is for ranks of one node: {alone} of {whole} are on this "
                "one. Use staged, or a CUDA-aware MPI and direct."
            )
        self.comm, self.window = comm, Window(comm)

    def exchange(self, send, send_spans: tuple, recv, recv_spans: tuple) -> Done:
        """All ranks give the same ``send_spans``, so that each finds its piece in the others'
        windows."""
        check(send)
        check(recv)
        me = self.comm.rank
        start = send[: send_spans[me].start].size
        largest = max(send.nbytes, *(recv[span].nbytes for span in recv_spans))

        def work():
            self._put(send, largest)
            for rank, span in enumerate(recv_spans):
                if rank != me:
                    into = recv[span]
                    theirs = self.window.of(rank, send.dtype, start + into.size)
                    into[...] = theirs[start:].reshape(into.shape)
            self._everybody()

        return Done(work, send, recv)

    def broadcast(self, x, root: int):
        check(x)

        def work():
            self._put(x if self.comm.rank == root else None, x.nbytes)
            if self.comm.rank != root:
                x.reshape(-1)[...] = self.window.of(root, x.dtype, x.size)
            self._everybody()

        return Done(work, x)

    def _put(self, x, room: int) -> None:
        """My numbers where the others can read them; returns when everybody's are."""
        self.window.grow(room)
        if x is not None:
            self.window.of(self.comm.rank, x.dtype, x.size)[...] = x.reshape(-1)
        self._everybody()

    def _everybody(self) -> None:
        synchronize()
        self.comm.Barrier()

    def close(self) -> None:
        self.window.close()
