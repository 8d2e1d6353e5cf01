"""Where a job prints: rank 0's console."""

import os
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from .. import launch

WIDTH = 100  # columns, where nothing says how many there are


def job_console(rank: int, env: Mapping[str, str] = os.environ, *, stderr: bool = False) -> Console:
    """Rank 0's console, and a quiet one on every other rank.

    A rank cannot see the terminal: its output goes to the launcher.  Open MPI even gives it a
    terminal of its own when the job writes into a file.  So it takes itself to be on one only if
    ``tparallel --ranks`` has told it so (``TTY_COMPATIBLE``), or if there is no launcher.
    """
    told = "TTY_COMPATIBLE" in env or not launch.started_copies(env)
    console = Console(quiet=rank > 0, stderr=stderr, force_terminal=None if told else False)
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    return console


def print_wide(console: Console, table: Any) -> None:
    """Print a table as wide as it needs: on a narrow terminal lines break, nothing is cut off."""
    narrow, console.width = console.width, max(console.width, WIDTH)
    console.print(table, crop=False)
    console.width = narrow
