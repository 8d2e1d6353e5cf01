"""What a layer must know beside its input and its parameters, in one value that all are given.

Most of it says *where*: a process may compute some of the rows, heads and positions, and a text
may have begun before this input.  The rest are constants of the architecture.
"""

from typing import Any, NamedTuple

from ..backend import xp
from ..config import ModelConfig
from .dropout import NONE, Dropout
from .rope import Rope


class Context(NamedTuple):
    drop: Dropout = NONE  # what is dropped, at which rows, heads and positions
    norm_eps: float = 1e-5
    rope: Rope | None = None  # None: positions are learned, they are the embedding's
    start: Any = 0  # the position of the first token: of all rows, or (B, 1) of each
    past: Any = None  # generation: keys and values of earlier tokens; has of(layer), extend(kv)

    def of(self, layer: str | int) -> "Context":
        """The same, in a layer."""
        past = None if self.past is None else self.past.of(layer)
        return self._replace(drop=self.drop.of(layer), past=past)

    def from_row(self, row: int) -> "Context":
        """The same for rows that begin ``row`` sequences further on."""
        return self._replace(drop=self.drop.from_row(row))

    def positions(self, T: int):
        """The positions of T tokens: (T), or (B, T) where rows start at different ones."""
        return self.start + xp.arange(T)

    def extend(self, kv):
        """kv (B, T, 2, Hkv, K) behind those of the tokens before, where there are any."""
        return kv if self.past is None else self.past.extend(kv)


ORIGIN = Context()  # one process from the first row on, GPT-2's constants, nothing dropped


def context(c: ModelConfig, dtype: str) -> Context:
    """The constants of an architecture; ``dtype`` is that of the activations."""
    rope = Rope(c, dtype) if c.position == "rope" else None
    return Context(norm_eps=c.norm_eps, rope=rope)
