"""The one stream: what has been asked of the device, and how often the host waits for it."""

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
# A wait is told by the line that asked for it, not by those that pass it on.
BETWEEN = {*HERE.glob("*.py"), HERE.parents[2] / "tparallel" / "backend.py"}
PINNED: list[tuple[int, int]] = []  # (address, bytes) of pinned host memory


class Queue:
    def __init__(self):
        self.busy = False
        self.waits: list[str] = []  # why the host has waited, and at which line
        self.copies: list = []  # what is over when it has waited

    def work(self) -> None:
        """A kernel is asked for; it runs when it likes."""
        self.busy = True

    def wait(self, why: str) -> None:
        """The host waits for the device."""
        frame = sys._getframe(1)
        while Path(frame.f_code.co_filename).resolve() in BETWEEN:
            frame = frame.f_back
        where = Path(frame.f_code.co_filename)
        self.waits.append(f"{why} at {where.parent.name}/{where.name}:{frame.f_lineno}")
        self.busy = False
        copies, self.copies = self.copies, []
        for end in copies:
            end()

    def copy_out(self, numbers, host) -> None:
        """The host sees the numbers when it has waited."""
        self.work()
        self.copies.append(lambda: np.copyto(host, numbers))

    def copy_in(self, host) -> None:
        """The device may read pinned memory at any time until the host has waited."""
        self.work()
        if isinstance(host, np.ndarray) and _is_pinned(host):
            before = host.tobytes()

            def end():
                if host.tobytes() != before:
                    raise RuntimeError("pinned memory was changed while it was being copied")

            self.copies.append(end)

    def must_be_idle(self) -> None:
        if self.busy:
            raise RuntimeError("MPI is handed an array whose kernels may still run: synchronize")


def _is_pinned(host: np.ndarray) -> bool:
    address = host.ctypes.data
    return any(start <= address < start + size for start, size in PINNED)


queue = Queue()
