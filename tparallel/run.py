"""The steps of one training run: batch, update, a look at held-out text, a line, a checkpoint."""

import argparse
import math
import time
from collections.abc import Callable

import numpy as np

from . import data, launch
from .checkpoint import Saver
from .errors import NotFiniteError, ReplicaError
from .report.log import Log
from .report.screen import Screen
from .serial.adamw import learning_rate
from .train import Trainer
from .verify import replicas

FINISHED, DIVERGED, SIGNALLED = 0, 1, 128  # how a run ends, as its exit code; 128 + the signal


class Run:
    """The steps of one training run: batch, update, line."""

    def __init__(
        self,
        trainer: Trainer,
        corpus: data.Corpus,
        args: argparse.Namespace,
        log: Log,
        screen: Screen,
        stop: Callable[[], int],  # the signal that asks any rank to stop, 0: the same on all
        saver: Saver | None = None,
        done: int = 0,  # steps
    ):
        self.trainer, self.corpus, self.args = trainer, corpus, args
        self.log, self.screen, self.stop = log, screen, stop
        self.saver, self.done = saver, done
        self.lines: list[dict] = []
        self.blame = ""  # where the first number arose that is not finite

    def steps(self) -> int:
        """Those that are left, or until something ends them; how, as the exit code."""
        every, last = self.args.validate_every, self.trainer.train.steps
        for number in range(self.done + 1, last + 1):
            launch.at(f"step {number}")
            line = self.step(number)
            diverged = not self.finite(line)
            stopped = self.stop()
            if every and (number % every == 0 or number == last) and not (diverged or stopped):
                stopped = self.validate(line)
            self.lines.append(line)
            self.log.write(line)
            self.screen.step(line)
            if self.saver and not diverged:
                self.save(number, now=bool(stopped) or number == last)
            if diverged or stopped:
                return DIVERGED if diverged else SIGNALLED + stopped
        return FINISHED

    def save(self, number: int, now: bool) -> None:
        """A checkpoint every so many steps, and ``now``."""
        assert self.saver
        self.saver.poll()
        if now or number % self.args.save_every == 0:
            self.screen.saving()
            self.saver.save(number)

    def step(self, number: int) -> dict:
        """Update ``number``, from batch ``number`` − 1; the line for the log."""
        train, T, step = self.trainer.train, self.trainer.model.T, number - 1
        tokens, targets = self.corpus.batch(step, train.global_batch, T, train.seed)
        start = time.perf_counter()
        with np.errstate(over="ignore", invalid="ignore"):  # said once, with the step, by why()
            loss, norm = self.update(step, tokens, targets)
        seconds = time.perf_counter() - start
        return {
            "step": number,
            "loss": loss,
            "bits_per_byte": data.bits_per_byte(loss, targets, self.corpus.sizes),
            "gradient_norm": norm,
            "learning_rate": learning_rate(step, train),
            "seconds": seconds,
            "tokens_per_second": tokens.size / seconds,
        }

    def update(self, step: int, tokens: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
        """Loss and gradient norm; where they are not finite, nothing has been updated."""
        try:
            loss, norm = self.trainer.step(step, tokens, targets)
        except NotFiniteError as e:
            self.blame = str(e)
            return e.loss, e.norm
        every = self.args.check_replicas
        if every and (step + 1) % every == 0:
            try:
                replicas.check(self.trainer, step, tokens, targets)
            except ReplicaError as e:
                raise SystemExit(f"ReplicaError: {e}") from None
        return loss, norm

    def finite(self, line: dict) -> bool:
        """Can training go on?  float16 skips an update whose scaled gradients overflow."""
        overflow_is_fine = self.trainer.train.dtype == "float16"
        return math.isfinite(line["loss"] + (0 if overflow_is_fine else line["gradient_norm"]))

    def validate(self, line: dict) -> int:
        """Put the loss on held-out text into ``line``; the signal that came before it is known."""
        G, T = self.trainer.train.global_batch, self.trainer.model.T
        batches = max(1, min(self.args.validate_batches, self.corpus.validation_rows(T) // G))
        total, seen = 0.0, []
        for k in range(batches):
            self.screen.validating(k + 1, batches)
            tokens, targets = self.corpus.validation(k, G, T)
            total += self.trainer.evaluate(tokens, targets)
            seen.append(targets)
            if stopped := self.stop():
                return stopped
        line["validation_loss"] = total / batches
        bits = data.bits_per_byte(total / batches, np.stack(seen), self.corpus.sizes)
        line["validation_bits_per_byte"] = bits
        return 0

    def why(self, end: int) -> str:
        """Why the run ended before its last step."""
        if end == FINISHED:
            return ""
        last = self.lines[-1]
        if end > SIGNALLED:
            return f"Interrupted: ended after step {last['step']}, as asked."
        return (
            "Stopped: the loss and the gradient norm must stay finite; at step "
            f"{last['step']} they are {last['loss']} and {last['gradient_norm']}. Use a "
            "smaller --lr, a longer --warmup, or --clip 1. Nothing was updated in it. "
            f"({self.blame})"
        )
