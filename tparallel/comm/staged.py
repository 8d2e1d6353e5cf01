"""The verbs for arrays that MPI cannot see: copy to the host, move, copy back.

The host's side is pinned memory, which the device copies from and to by itself.  Making it is
slow, so that buffers are kept.  A copy to the device is only queued when the verb is over: its
buffer may be written again after the next wait for the device, not before.
"""

from typing import NamedTuple

import numpy as np

from ..backend import synchronize
from .transport import Direct, Moving, check, cut


class Room(NamedTuple):
    """A pinned buffer, and its beginning as an array."""

    buffer: np.ndarray
    array: np.ndarray


class Pinned:
    """Pinned buffers: ``free`` ones, and those that the device may still be reading."""

    def __init__(self):
        self.free: list = []
        self.read_by_device: list = []

    def like(self, x) -> Room:
        """Room for the numbers of ``x``: the smallest free buffer that is large enough, or a new
        one, of a power of two bytes so that it fits others too."""
        fits = [i for i, b in enumerate(self.free) if b.size >= x.nbytes]
        if fits:
            buffer = self.free.pop(min(fits, key=lambda i: self.free[i].size))
        else:
            import cupyx

            buffer = cupyx.empty_pinned(1 << max(12, (x.nbytes - 1).bit_length()), np.uint8)
        return Room(buffer, buffer[: x.nbytes].view(x.dtype).reshape(x.shape))

    def synchronize(self) -> None:
        """Wait for the device: it then reads none of these any more."""
        synchronize()
        self.free += self.read_by_device
        self.read_by_device = []


class Staged:
    """The verbs of ``Direct``, by way of the host."""

    pinned = Pinned()  # of all communicators

    def __init__(self, comm, naps: bool = False):
        self.host = Direct(comm, naps, synchronize=lambda: None)

    def all_to_all(self, send, send_counts, recv, recv_counts) -> Moving:
        out, into = self._copied(send), self._room(recv)
        moving = self.host.all_to_all(out.array, send_counts, into.array, recv_counts)
        return self._then(moving, out, into, recv)

    def all_gather(self, send, recv, recv_counts) -> Moving:
        mine = cut(recv, recv_counts)[self.host.comm.rank] if send is None else send
        out, into = self._copied(mine), self._room(recv)
        moving = self.host.all_gather(out.array, into.array, recv_counts)
        return self._then(moving, out, into, recv)

    def broadcast(self, x, root: int) -> Moving:
        copy = self._copied(x)
        return self._then(self.host.broadcast(copy.array, root), None, copy, x)

    def send(self, x, to: int, tag: int) -> Moving:
        copy = self._copied(x)
        return self._then(self.host.send(copy.array, to, tag), copy)

    def receive(self, x, source: int, tag: int) -> Moving:
        into = self._room(x)
        return self._then(self.host.receive(into.array, source, tag), None, into, x)

    def close(self) -> None:
        """The buffers stay: other communicators use them too."""

    def _copied(self, x) -> Room:
        room = self._room(x)
        x.get(out=room.array, blocking=False)
        self.pinned.synchronize()
        return room

    def _room(self, x) -> Room:
        check(x)
        return self.pinned.like(x)

    def _then(self, moving: Moving, sent: Room | None, into: Room | None = None, x=None) -> Moving:
        """When it is over, what has come ``into`` the host goes to ``x``; buffers come back."""

        def after() -> None:
            if into is not None:
                x.set(into.array)
                self.pinned.read_by_device.append(into.buffer)
            if sent is not None:
                self.pinned.free.append(sent.buffer)

        moving.after = after
        return moving
