"""A verb that has been started and not yet awaited: what lies between is hidden communication."""

import time
from collections.abc import Callable

from .ledger import Ledger


class Pending:
    """``wait()`` finishes the verb and returns its result; the ledger learns when it was posted,
    when somebody began to wait for it, and when it was there."""

    def __init__(self, ledger: Ledger, axis: str, op: str, what: str, finish: Callable, test=None):
        self.ledger, self.axis, self.op, self.what, self.finish = ledger, axis, op, what, finish
        self.test = test  # asks without waiting, where the verb can be asked
        self.posted = time.monotonic()
        self.done = False
        self.result = None

    def wait(self):
        if not self.done:
            waited = time.monotonic()
            self.result, self.done = self.finish(), True
            del self.finish  # and with it the buffers that only MPI needed
            now = time.monotonic()
            self.ledger.arrived(self.axis, self.op, self.what, self.posted, waited, now)
        return self.result

    def is_done(self) -> bool:
        """True once the verb is over, without waiting for it (it is finished then)."""
        if not self.done and self.test is not None and self.test():
            self.wait()
        return self.done
