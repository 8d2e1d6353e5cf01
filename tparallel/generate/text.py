"""Ids as text, shown while they come."""

import sys
from collections.abc import Sequence
from typing import TextIO

from ..data import BYTES
from ..errors import DataError
from ..tokenizer import Tokenizer

UNFINISHED = "\ufffd"  # what stands for the first bytes of a character whose last ones are to come


class Words:
    """Text and ids, by a model's own tokenizer or, where it has none, by bytes."""

    def __init__(self, tokenizer: Tokenizer | None, V: int):
        self.tokenizer, self.V = tokenizer, V

    def ids(self, text: str, name: str) -> list[int]:
        """A prompt's ids, with the special tokens that the model's tokenizer puts around them.

        Errors: DataError where the vocabulary has no room for bytes.
        """
        if self.tokenizer:
            return self.tokenizer.encode(text.encode(), name, special=True).tolist()
        if self.V < BYTES:
            raise DataError(
                f"the vocabulary must have a token for every byte: V = {self.V}, which is no "
                "model of text. Use --tokens with ids, or --tokenizer DIR."
            )
        return [*text.encode()]

    def text(self, ids: Sequence[int]) -> str:
        """Special tokens stand for nothing."""
        if self.tokenizer:
            return self.tokenizer.decode(ids)
        return bytes(i for i in ids if i < BYTES).decode("utf-8", "replace")


class Stream:
    """Writes texts one after the other, each as far as it is known: the first one grows before the
    reader's eyes, and when it has ended, what is known of the next follows."""

    def __init__(self, words: Words, prompts: Sequence[Sequence[int]], out: TextIO | None = None):
        self.words, self.prompts, self.out = words, prompts, out or sys.stdout
        self.now, self.shown = 0, ""

    def tell(self, number: int, new: Sequence[int], ended: bool) -> None:
        """What is known of prompt ``number``; the caller goes on with the next once it has ended,
        and is not heard before."""
        if number != self.now:
            return
        text = self.words.text([*self.prompts[number], *new])
        text = text if ended else text.rstrip(UNFINISHED)
        if text.startswith(self.shown):
            self.out.write(text[len(self.shown) :])
            self.shown = text
        if ended:
            self.out.write("\n" + "---\n" * (number + 1 < len(self.prompts)))
            self.now, self.shown = number + 1, ""
        self.out.flush()
