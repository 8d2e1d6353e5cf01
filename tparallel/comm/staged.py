"""The verbs for arrays that MPI cannot see: copy to the host, move, copy back.

The host's side is pinned memory, which the device copies from and to by itself.  Making it is
slow, so that buffers are kept.  A copy to the device is only queued when the verb is over: its
buffer may be written again after the next wait for the device, not before.
"""

from typing import NamedTuple

import numpy as np

from ..backend import synchronize
from .transport import Direct, Moving, check


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

    def exchange(self, send, send_spans: tuple, recv, recv_spans: tuple) -> Moving:
        out, into = self._copied(send), self._room(recv)
        moving = self.host.exchange(out.array, send_spans, into.array, recv_spans)
        come = [recv_spans[r] for r in self.host.others]
        return self._then(moving, out, into, recv, come)

    def swap(self, send, recv) -> Moving:
        """Of two ranks: all of ``send`` goes to the other, ``recv`` is filled by it."""
        send, recv = send.reshape(-1), recv.reshape(-1)
        all_of_it, place = (slice(0, send.size),) * 2, (slice(0, recv.size),) * 2
        return self.exchange(send, all_of_it, recv, place)

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

    def _then(
        self, moving: Moving, sent: Room | None, into: Room | None = None, x=None, come=(...,)
    ) -> Moving:
        """When it is over, what has come ``into`` the host, the spans ``come`` of it, goes to
        ``x``; buffers come back."""

        def after() -> None:
            if into is not None:
                for span in come:
                    x[span].set(into.array[span])
                self.pinned.read_by_device.append(into.buffer)
            if sent is not None:
                self.pinned.free.append(sent.buffer)

        moving.after = after
        return moving
