"""A training run on the terminal: what is trained, a table that grows by some twenty lines with a
bar below it, and how it ended.

Where the output is no terminal the bar is left out and the same lines remain.
"""

import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..config import Layout, ModelConfig, TrainConfig
from ..data import Corpus
from ..serial.parameters import count

LINES = 20
PAUSE = 0.1  # seconds between two looks of the bar
HEAD = " step    loss  bits/byte  grad norm  learn rate  tokens/s  held out  bits/byte"


class Screen:
    """Rank 0 shows what happens; on a quiet console every call does nothing."""

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
            self.console.show_cursor(True)  # another rank's error may leave no time for it later
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def begin(
        self,
        model: ModelConfig,
        train: TrainConfig,
        layout: Layout,
        corpus: Corpus,
        more: Iterable[str] = (),
    ) -> None:
        """What is about to be trained, by whom, on what."""
        ranks = "1 rank" if layout.ranks == 1 else f"{layout.ranks} ranks"
        cut = layout.dp * layout.microbatches
        parts = f", cut dp × M = {layout.dp} × {layout.microbatches} ways" if cut > 1 else ""
        self.say(
            f"model   {model}: {count(model):,} parameters, {train.dtype}",
            f"layout  {layout.name} on {ranks}",
            f"batch   {train.global_batch} sequences of {model.T} tokens{parts}",
            f"text    {corpus.name}: {corpus.size:,} bytes, sha256 {corpus.sha256[:12]}",
            *more,
            "",
        )

    def step(self, line: dict) -> None:
        """``line`` is the log's: shown if it is one of twenty, the last, or has a validation."""
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

    def saving(self) -> None:
        self.bar.update(self.task, description="writing a checkpoint", refresh=True)

    def end(
        self, lines: list[dict], log: str | None, why: str = "", saved: Path | None = None
    ) -> None:
        """What came of it, in plain sentences; ``why`` it ended before its time."""
        if not lines:  # it goes on from its end
            return
        first, last = lines[0], lines[-1]
        speed = median(line["tokens_per_second"] for line in lines)
        self.say(
            "",
            f"{len(lines)} of {self.steps} steps, {speed:,.0f} tokens/s: the loss went from "
            f"{first['loss']:.4f} to {last['loss']:.4f} nats per token, which is "
            f"{last['bits_per_byte']:.4f} bits per byte.",
        )
        if "validation_loss" in last:
            self.say(
                f"On held-out text it is {last['validation_loss']:.4f}, or "
                f"{last['validation_bits_per_byte']:.4f} bits per byte."
            )
        self.say(*[why] * bool(why), *[f"Log: {log}"] * bool(log))
        if saved and saved.name:
            self.say(f"Checkpoint: {saved}")

    def say(self, *lines: str) -> None:
        for line in lines:
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)
