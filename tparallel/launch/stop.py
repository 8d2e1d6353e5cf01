"""Ctrl-C and SIGTERM between two steps of a loop, on all ranks after the same one."""

import contextlib
import signal
from collections.abc import Callable, Iterator


class Signals:
    """How many signals came, how many a handler has seen: it runs between two calls of MPI."""

    came = heard = 0
    may_wait = False  # a first signal is heard when the step gets there


signals = Signals()


@contextlib.contextmanager
def stopping() -> Iterator[Callable[[], int]]:
    """Let a loop end between two steps: the first Ctrl-C or SIGTERM is noted, the second acts.
    Yields a function that returns the number of the signal that came, or 0.

    with launch.stopping() as asked:
        for step in range(steps):
            ...
            if comm.allreduce(asked(), MPI.MAX):  # on all ranks after the same step
                break
    """
    asked: list[int] = []

    def note(number: int, frame: object) -> None:
        signals.heard += 1
        asked.append(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    signals.may_wait = True
    try:
        yield lambda: asked[0] if asked else 0
    finally:
        signals.may_wait = False
        restore()
