"""A training run on the terminal: a table that grows by some twenty lines, and a bar below it.

Where the output is no terminal the bar is left out and the same lines remain.
"""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINES = 20
PAUSE = 0.1  # seconds between two looks of the bar
HEAD = " step    loss  bits/byte  grad norm  learn rate  tokens/s  held out  bits/byte"


class Screen:
    """Rank 0 shows what happens; on the others every call does nothing."""

    def __init__(self, console: Console, steps: int):
        self.console, self.steps, self.shown = console, steps, 0.0
        self.bar = Progress(
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TextColumn("[bold]{task.description}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            auto_refresh=False,  # a thread would take time from this rank's computations
            disable=not console.is_terminal or console.quiet,
        )
        self.task = self.bar.add_task("", total=steps)

    def __enter__(self) -> "Screen":
        self.console.print(HEAD, style="bold", highlight=False, soft_wrap=True)
        self.bar.start()
        if not self.bar.disable:
            self.console.show_cursor(True)  # for good: another rank's end may leave no time to
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def step(self, line: dict) -> None:
        """``line`` is the log's: shown if it is one of twenty, the last, or a validation."""
        number, held_out = line["step"], line.get("validation_loss")
        if number in (1, self.steps) or number % max(1, self.steps // LINES) == 0 or held_out:
            text = (
                f"{number:>5}{line['loss']:>8.4f}{line['bits_per_byte']:>11.4f}"
                f"{line['gradient_norm']:>11.4g}{line['learning_rate']:>12.2e}"
                f"{line['tokens_per_second']:>10,.0f}"
            )
            if held_out:
                text += f"{held_out:>10.4f}{line['validation_bits_per_byte']:>11.4f}"
            self.say(text)
        now = f"loss {line['loss']:.3f}  {line['tokens_per_second']:,.0f} tokens/s"
        due = time.monotonic() - self.shown > PAUSE
        self.shown = time.monotonic() if due else self.shown
        self.bar.update(self.task, completed=number, description=now, refresh=due)

    def validating(self, number: int, of: int) -> None:
        self.bar.update(self.task, description=f"held-out text {number}/{of}", refresh=True)

    def say(self, *lines: str) -> None:
        for line in lines:
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)
