"""The shared memory of ranks that cannot end in order: about 1 MB a rank, kept until a restart.

MPI_Finalize removes it.  A job that ends by Abort or a signal leaves it in ``/dev/shm``.
"""

import contextlib
import os

# What MPI names its segments; anything else in /dev/shm is somebody's data.
PREFIXES = tuple(f"/dev/shm/{name}" for name in ("mpich_shm_", "sm_segment.", "Intel_MPI_"))


def segments(pid: int | str = "self") -> set[str]:
    """The files of shared memory that MPI uses in a process (Linux; elsewhere none)."""
    try:
        with open(f"/proc/{pid}/maps") as file:
            paths = {line.split(maxsplit=5)[-1].strip() for line in file}
    except OSError:  # it ended meanwhile
        return set()
    return {path for path in paths if path.startswith(PREFIXES)}


def remove(paths: set[str]) -> None:
    """Remove the names; the memory goes when the last rank that uses it ends."""
    for path in paths:
        with contextlib.suppress(OSError):
            os.unlink(path)
