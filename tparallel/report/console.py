"""Where a job prints: rank 0's console."""

import os
from collections.abc import Mapping

from rich.console import Console

from .. import launch


def job_console(rank: int, env: Mapping[str, str] = os.environ) -> Console:
    """Rank 0's console, and a quiet one on every other rank.

    A rank cannot see the terminal: its output goes to the launcher.  Open MPI even gives it a
    terminal of its own when the job writes into a file.  So it takes itself to be on one only if
    ``tparallel --ranks`` has told it so (``TTY_COMPATIBLE``), or if there is no launcher.
    """
    told = "TTY_COMPATIBLE" in env or not launch.started_copies(env)
    return Console(quiet=rank > 0, force_terminal=None if told else False)
