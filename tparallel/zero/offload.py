"""Where the optimizer's state lives: beside the parameters, or outside of their memory.

Offloaded state is touched once per step, chunk by chunk, so that a slow memory will do.  Next to
a GPU that memory is the host's, pinned so that copies are fast.  Where there is no GPU it is a
file that the system maps and pages: an anonymous one, gone when the process is, on ``TMPDIR``.

Source: Ren et al. 2021 (ZeRO-Offload), section 4; files: Rajbhandari et al. 2021, section 5.1
"""

import mmap
import tempfile
from contextlib import contextmanager

import numpy as np

from ..backend import to_host, xp


class Placement:
    """State in the memory of the parameters."""

    def zeros(self, size: int, dtype):
        return xp.zeros(size, dtype)

    def write(self, held, values) -> None:
        held[...] = values

    @contextmanager
    def here(self, parts: dict):
        """The same parts as arrays that can be computed on; changes are kept."""
        yield parts


class MappedFile(Placement):
    """State in a file, mapped into memory: resident only while it is touched."""

    def zeros(self, size: int, dtype):
        with tempfile.TemporaryFile() as file:
            file.truncate(max(1, size * np.dtype(dtype).itemsize))
            return np.frombuffer(mmap.mmap(file.fileno(), 0), dtype, count=size)


class PinnedHost(Placement):
    """State in the host's memory, next to a GPU."""

    def zeros(self, size: int, dtype):
        import cupyx

        return cupyx.zeros_pinned(size, dtype)

    def write(self, held, values) -> None:
        held[...] = to_host(values)

    @contextmanager
    def here(self, parts: dict):
        copies = {kind: xp.asarray(part) for kind, part in parts.items()}
        yield copies
        for kind, part in parts.items():
            part[...] = to_host(copies[kind])


def placement(offload: bool) -> Placement:
    if not offload:
        return Placement()
    return MappedFile() if xp is np else PinnedHost()
