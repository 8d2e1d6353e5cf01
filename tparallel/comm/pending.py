"""A verb that has been started and not yet awaited: what lies between is hidden communication."""

from collections.abc import Callable
from time import monotonic

from .ledger import Event, Ledger, Total


class Pending:
    """``wait()`` finishes the verb and returns its result; the ledger learns when it was posted,
    when somebody began to wait for it, and when it was there.

    ``total``: its line in the ledger.  ``begun``: when the verb was called.  ``test`` asks without
    waiting, where a verb can be asked.
    """

    __slots__ = ("done", "finish", "ledger", "posted", "result", "test", "total")

    def __init__(
        self, ledger: Ledger, total: Total, begun: float, finish: Callable, test: Callable | None
    ):
        self.ledger, self.total, self.finish, self.test = ledger, total, finish, test
        self.posted, self.done = monotonic(), False
        total.seconds += self.posted - begun

    def wait(self):
        if not self.done:
            waited = monotonic()
            self.result, self.done = self.finish(), True
            now = monotonic()
            self.total.seconds += now - waited
            del self.finish  # and with it the buffers that only MPI needed
            events = self.ledger.events
            if events is not None and self.ledger.open:
                events.append(Event(*self.total.key, self.posted, waited, now))
        return self.result

    def is_done(self) -> bool:
        """True once the verb is over, without waiting for it (it is finished then)."""
        if not self.done and self.test is not None and self.test():
            self.wait()
        return self.done


def over(result) -> Pending:
    """A verb that had nothing to move."""
    pending = Pending.__new__(Pending)
    pending.result, pending.done = result, True
    return pending
