"""Transfers that are on their way while something else is computed."""

from collections import deque
from collections.abc import Callable

from ..comm.pending import Pending


class InFlight:
    """A queue of started transfers, finished in the order of their start.

    At most ``depth`` are under way: the buffers that they hold are memory too.  Depth 0 waits for
    each at once: nothing overlaps.
    """

    def __init__(self, depth: int):
        self.depth, self.queue = depth, deque[tuple[Pending, Callable]]()

    def add(self, pending: Pending, then: Callable = lambda result: None) -> None:
        """``then(result)`` is called when the transfer is over, at the latest in ``land``."""
        self.queue.append((pending, then))
        self.land(self.depth)

    def land(self, leave: int = 0) -> None:
        """Finish transfers, the oldest first, until ``leave`` are left."""
        while len(self.queue) > leave:
            pending, then = self.queue.popleft()
            then(pending.wait())
