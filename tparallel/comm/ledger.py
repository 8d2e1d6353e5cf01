"""Every transfer, counted: operation, mesh axis, reason, payload, wire bytes, seconds.

*Payload* is the size of the array that the verb is about.  *Wire* is what this rank sends: the
integer number of bytes that it hands to MPI for other ranks.  The two differ by the algorithm's
factor, 2 (n−1)/n for an all-reduce, which is where published byte counts part company.
"""

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple


class Key(NamedTuple):
    axis: str
    op: str
    what: str


class Event(NamedTuple):
    """One transfer in time (``time.monotonic``): posted, awaited from, there."""

    axis: str
    op: str
    what: str
    posted: float
    waited: float
    done: float


@dataclass(slots=True)
class Total:
    key: Key
    count: int = 0
    payload: int = 0
    wire: int = 0
    seconds: float = 0.0


@dataclass
class Ledger:
    """Totals per (axis, operation, reason): its size does not grow with the number of steps.

    ``events``, the transfers one by one, is kept only if it is set to a list.
    """

    totals: dict[Key, Total] = field(default_factory=dict)
    open: bool = True
    events: list[Event] | None = None

    def record(self, axis: str, op: str, what: str, payload: int, wire: int) -> Total:
        """One more transfer.  Returns its line, to which the time that it takes is added."""
        key = axis, op, what
        if not self.open:
            return Total(Key(*key))  # which nobody will read
        total = self.totals.get(key)  # type: ignore[call-overload]  # a Key is a tuple
        if total is None:
            total = self.totals[Key(*key)] = Total(Key(*key))
        total.count += 1
        total.payload += payload
        total.wire += wire
        return total

    def wire(self, axis: str) -> int:
        """Bytes that this rank sent over one axis of the mesh."""
        return sum(t.wire for k, t in self.totals.items() if k.axis == axis)

    @property
    def seconds(self) -> float:
        """Time that this rank spent inside the verbs: moving bytes, and waiting for others."""
        return sum(t.seconds for t in self.totals.values())

    def clear(self) -> None:
        self.totals.clear()

    @contextmanager
    def closed(self):
        """Transfers that belong to a measurement, not to the method, are left out."""
        was, self.open = self.open, False
        try:
            yield
        finally:
            self.open = was
