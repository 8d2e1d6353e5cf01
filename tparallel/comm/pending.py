"""A verb that has been started and not yet awaited: what lies between is hidden communication."""

import time
from collections.abc import Callable

from .ledger import Event, Ledger


class Pending:
    """``wait()`` finishes the verb and returns its result; the ledger learns when it was posted,
    when somebody began to wait for it, and when it was there."""

    def __init__(self, ledger: Ledger, axis: str, op: str, what: str, finish: Callable):
        self.ledger, self.axis, self.op, self.what, self.finish = ledger, axis, op, what, finish
        self.posted = time.monotonic()
        self.done = False
        self.result = None

    def wait(self):
        if not self.done:
            waited = time.monotonic()
            self.result, self.done = self.finish(), True
            del self.finish  # and with it the buffers that only MPI needed
            event = Event(self.axis, self.op, self.what, self.posted, waited, time.monotonic())
            self.ledger.arrived(event)
        return self.result
