"""Ranks of one host reach each other while they wait inside MPI: a thread listens.

MPI itself cannot carry this: a rank that waits in ``Recv`` reads nothing else, and runs no Python
signal handler.  Unix sockets with a name that the job shares can.
"""

import contextlib
import os
import select
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable


class Host:
    """This rank's line to the others of its host, and to signals.

    In the listening thread ``on_end(code)`` is called when another rank calls :meth:`end_others`,
    ``on_where()`` when one calls :meth:`ask_others`, and ``on_signal()`` as soon as a signal comes,
    wherever the main thread is.
    """

    def __init__(
        self,
        token: str,
        rank: int,
        ranks: Iterable[int],
        on_end: Callable[[int], None],
        on_signal: Callable[[], None],
        on_where: Callable[[], None],
    ) -> None:
        self._token, self._others = token, [r for r in ranks if r != rank]
        self._inbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._inbox.bind(self._address(rank))
        # Python's C-level signal handler writes here at once, also during a call of MPI.
        self._signals = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._signals.setblocking(False)
        self._signals.connect(self._address(rank))
        signal.set_wakeup_fd(self._signals.fileno(), warn_on_full_buffer=False)
        listen = threading.Thread(
            target=self._listen, args=(on_end, on_signal, on_where), daemon=True
        )
        listen.start()

    def end_others(self, code: int, patience: float = 1.0) -> None:
        """Have the other ranks of this host end with ``code``; return when none listens more."""
        end, left = time.monotonic() + patience, self._others
        while left and time.monotonic() < end:
            left = [rank for rank in left if self._tell(rank, b"end %d" % code)]
            time.sleep(0.02)

    def ask_others(self) -> None:
        """Have the other ranks of this host say where they are."""
        for rank in self._others:
            self._tell(rank, b"where")

    def _tell(self, rank: int, word: bytes) -> bool:
        """True if the rank lives: its name vanishes with it."""
        try:
            self._inbox.sendto(word, socket.MSG_DONTWAIT, self._address(rank))
        except BlockingIOError:  # its inbox is full
            return True
        except OSError:
            return False
        return True

    def first(self) -> bool:
        """True on one rank only, the first that asks: a name can be taken once."""
        self._taken = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._taken.bind(self._address("first"))
        except OSError:
            return False
        return True

    def _address(self, who: int | str) -> str:
        name = f"tparallel-{self._token}-{who}"
        # Linux has names without files; they vanish with the process.
        return f"\0{name}" if sys.platform == "linux" else f"{tempfile.gettempdir()}/{name}"

    def _listen(
        self,
        on_end: Callable[[int], None],
        on_signal: Callable[[], None],
        on_where: Callable[[], None],
    ) -> None:
        while True:
            word = self._inbox.recv(64)
            if word.startswith(b"end "):
                on_end(int(word[4:]))
            elif word == b"where":
                on_where()
            elif set(word) & {signal.SIGINT, signal.SIGTERM}:
                on_signal()


def sign_off() -> None:
    """Tell the launcher that this rank ends on purpose, whatever its main thread waits for.

    MPICH's and Intel MPI's mpiexec kills all ranks as soon as one ends without this word, and may
    report the signal (9, or 255) as the exit code of the job.  The word is the one that
    MPI_Finalize sends, in version 1 of the PMI protocol.
    """
    started_by_hydra = any(name.startswith(("HYDI_", "HYDRA_")) for name in os.environ)
    if started_by_hydra and "PMI_FD" in os.environ:
        with contextlib.suppress(OSError, ValueError):
            fd = int(os.environ["PMI_FD"])
            os.write(fd, b"cmd=finalize\n")
            if select.select([fd], [], [], 1)[0]:  # it must be able to answer
                os.read(fd, 256)
