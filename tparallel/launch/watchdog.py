"""Notice that nothing happens any more: a thread looks, for the main thread may wait inside MPI."""

import sys
import threading
import time
import traceback
from collections.abc import Callable


class Watchdog:
    """Calls ``hung()``, in its own thread, once :meth:`moved` was not called for ``timeout`` s."""

    def __init__(self, timeout: float, hung: Callable[[], None]) -> None:
        self.timeout, self._hung = timeout, hung
        self._last = time.monotonic()
        threading.Thread(target=self._look, daemon=True).start()

    def moved(self) -> None:
        self._last = time.monotonic()

    def _look(self) -> None:
        while (left := self._last + self.timeout - time.monotonic()) > 0:
            time.sleep(left)
        self._hung()


def main_stack() -> str:
    """Where the main thread is, innermost call last, without the frames of the launcher."""
    frame = sys._current_frames()[threading.main_thread().ident or 0]
    stack = traceback.extract_stack(frame)
    own = [f for f in stack if "/launch/" not in f.filename and not f.filename.startswith("<")]
    return "".join(traceback.format_list(own)).rstrip()
