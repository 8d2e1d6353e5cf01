"""Where a job of several ranks speaks to a person: rank 0's output."""

import os
from typing import Any

from rich.console import Console

WIDTH = 100  # columns, where nothing says how many there are


def terminal(rank: int, stderr: bool = False) -> Console:
    """Rank 0's console, and for the other ranks one that says nothing.

    Open MPI gives each rank a pseudo-terminal even where the job's output goes to a file, so that
    one is not believed; ``launch.run_ranks`` says with TTY_COMPATIBLE that there is a real one.
    """
    pseudo = "OMPI_COMM_WORLD_RANK" in os.environ and os.environ.get("TTY_COMPATIBLE") != "1"
    console = Console(stderr=stderr, quiet=rank > 0, force_terminal=False if pseudo else None)
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    return console


def show_wide(console: Console, table: Any) -> None:
    """Print a table as wide as it needs: on a narrow terminal lines break, nothing is cut off."""
    narrow, console.width = console.width, max(console.width, WIDTH)
    console.print(table, crop=False)
    console.width = narrow
