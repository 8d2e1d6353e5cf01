"""Prompts of unequal length as a batch: ids on the host, filled up on the right.

Prompts are dealt out in order: dp rank by dp rank, micro-batch by micro-batch, as many rows to
each.  Rows without a prompt fill the last ones; they are computed and not looked at.
"""

from collections.abc import Sequence

import numpy as np

from ..config import Layout, ModelConfig
from ..errors import DataError


class Rows:
    """One micro-batch: ``numbers`` of the prompts, ``ids`` (B, S) with ``lengths`` (B) so far, and
    which rows are ``done``: those that have met the token ``stop``."""

    def __init__(
        self, numbers: Sequence[int], prompts: Sequence[Sequence[int]], room: int, stop: int | None
    ):
        self.numbers, self.stop = numbers, stop
        self.prompts = np.array([len(p) for p in prompts])
        self.lengths = self.prompts.copy()
        self.ids = np.zeros((len(prompts), room), np.int64)
        for row, prompt in zip(self.ids, prompts):
            row[: len(prompt)] = prompt
        self.done = np.zeros(len(prompts), bool)
        self.steps = 0  # forward passes: prefill, and then as many less one of decode

    def add(self, new: np.ndarray) -> None:
        """The next id (B) of each row; a row that is done takes it and shows it to nobody."""
        self.ids[np.arange(len(new)), self.lengths] = new
        self.lengths += 1
        self.steps += 1
        if self.stop is not None:
            self.done |= new == self.stop

    def new(self, row: int) -> list[int]:
        """What a row has got so far, up to its first ``stop``."""
        out = self.ids[row, self.prompts[row] : self.lengths[row]].tolist()
        return out[: out.index(self.stop) + 1] if self.stop in out else out

    def last(self) -> np.ndarray:
        """The position of each row's last token, (B)."""
        return self.lengths - 1


def dealt(
    prompts: Sequence[Sequence[int]], layout: Layout, dp: int, new: int, stop: int | None
) -> list[Rows]:
    """The micro-batches of a dp rank."""
    M = layout.microbatches
    B = rows_each(len(prompts), layout)
    room = max(map(len, prompts)) + new
    out = []
    for first in range(dp * M * B, (dp + 1) * M * B, B):
        numbers = range(first, first + B)
        mine = [prompts[i] if i < len(prompts) else [0] for i in numbers]
        rows = Rows(numbers, mine, room, stop)
        rows.done |= np.array(numbers) >= len(prompts)
        out.append(rows)
    return out


def rows_each(prompts: int, layout: Layout) -> int:
    """B, rows of a micro-batch, so that all prompts have a place."""
    return -(-prompts // (layout.dp * layout.microbatches))


def check(prompts: Sequence[Sequence[int]], new: int, model: ModelConfig) -> None:
    """Can this model go on with these prompts?  Errors: DataError."""
    if not prompts:
        raise DataError("generation needs a prompt: there is none. Use --prompt TEXT.")
    if new < 1:
        raise DataError(f"at least one new token is made: max-new = {new}. Use --max-new 1.")
    for i, prompt in enumerate(prompts):
        if not len(prompt):
            raise DataError(
                f"a prompt must have a token, which the first new one follows: prompt {i} has "
                "none. Use a text of at least one."
            )
        if len(prompt) + new > model.T:
            raise DataError(
                f"a prompt and its new tokens must fit into the model's T: prompt {i} has "
                f"{len(prompt)}, and {new} new ones make {len(prompt) + new}, T = {model.T}. Use "
                f"a shorter prompt, or --max-new {max(1, model.T - len(prompt))}."
            )
        low, high = min(prompt), max(prompt)
        if low < 0 or high >= model.V:
            raise DataError(
                f"token ids must lie in the vocabulary: prompt {i} has ids from {low} to {high}, "
                f"V = {model.V}. Use ids from 0 to {model.V - 1}."
            )
