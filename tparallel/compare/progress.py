"""How far the comparison is: a bar on a terminal, a line for each layout elsewhere."""

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Silent:
    """For the ranks that do not speak."""

    def __enter__(self) -> "Silent":
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def begin(self, name: str) -> None:
        pass

    def tick(self) -> None:
        pass


class Bar(Silent):
    """Redrawn between steps and never by a thread, which would take a core from a rank."""

    def __init__(self, console: Console, layouts: int, steps: int):
        self.console, self.layouts, self.begun = console, layouts, 0
        self.bar = Progress(
            TextColumn("[bold]{task.description}", justify="left"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            auto_refresh=False,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("", total=(layouts + 1) * steps)

    def __enter__(self) -> "Bar":
        self.bar.start()
        if not self.bar.disable:
            self.console.show_cursor(True)  # for good: a job that ends in haste restores nothing
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.stop()

    def begin(self, name: str) -> None:
        self.bar.update(self.task, description=f"{name:22}", refresh=True)
        if self.bar.disable and self.begun:
            self.console.print(f"{self.begun:>3}/{self.layouts}  {name}", highlight=False)
        self.begun += 1

    def tick(self) -> None:
        self.bar.update(self.task, advance=1, refresh=True)
