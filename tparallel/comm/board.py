"""A line per rank, in memory that the ranks of one node share: what each is doing right now.

Written before and after every checked call; read when something has gone wrong, to say not only
who did not come, but where that one is instead.
"""

import contextlib
import mmap
import os
import secrets
import tempfile

WIDTH = 300  # bytes of a line


class Board:
    """Made by all ranks of ``comm``.  Ranks of other nodes are not seen.

    Communicates: a broadcast of a file's name, a barrier; later nothing.
    """

    def __init__(self, comm):
        self.rank, self.size = comm.rank, comm.size
        name = comm.bcast(f"tparallel-{secrets.token_hex(8)}")
        path = os.path.join(tempfile.gettempdir(), name)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(file, self.size * WIDTH)
        self._lines = mmap.mmap(file, self.size * WIDTH)
        os.close(file)
        comm.Barrier()
        with contextlib.suppress(OSError):  # the first rank of a node does it for the others
            os.unlink(path)
        self.write("has called nothing yet")

    def write(self, text: str) -> None:
        start = self.rank * WIDTH
        self._lines[start : start + WIDTH] = text.encode()[:WIDTH].ljust(WIDTH, b"\0")

    def read(self) -> dict[int, str]:
        """{rank: its line}, of the ranks on this node."""
        lines = (self._lines[r * WIDTH : (r + 1) * WIDTH] for r in range(self.size))
        texts = (line.rstrip(b"\0").decode(errors="ignore") for line in lines)
        return {rank: text for rank, text in enumerate(texts) if text}

    def close(self) -> None:
        self._lines.close()
