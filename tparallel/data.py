"""Text as tokens: which tokens form global batch k depends on the seed and k alone.

A token is a byte, so that any file in any encoding can be read, and V = 256 holds them all.  A
larger V adds special tokens: 256 ends a document where another follows, 257 and 258 are reserved
for what comes later, and any beyond never occur.  A model that others have trained has tokens of
its own (tokenizer.py).

Every rank reads the text itself: the default one ships with Python, a file system is shared, and
no rank's memory is anybody else's bottleneck.  That all of them read the *same* bytes (two hosts
may have two Pythons) is checked by ``agree``, one short message before training.

Units: a loss is in nats per token.  Bits per byte spread the same total over the bytes only, so
that vocabularies with and without special tokens can be compared.
"""

import hashlib
import sys
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError
from .tokenizer import BYTES as BYTES_ALONE
from .tokenizer import Tokenizer

BYTES = 256
END = 256  # between two documents, where the vocabulary has room for it
HELD_OUT = 10  # the last tenth is for validation
Rows = tuple[np.ndarray, np.ndarray]  # tokens, and each one's successor
NOT_OURS = {"site-packages", "dist-packages", "test", "tests", "idle_test"}


@dataclass(frozen=True)
class Corpus:
    """A text: ``tokens`` in one row, and what identifies it in a result."""

    name: str
    documents: int
    size: int  # bytes
    sha256: str  # of all bytes, as ``cat FILE... | sha256sum`` prints it
    tokens: np.ndarray  # (N,) uint8, uint16 where V > 256, or uint32 of a tokenizer
    sizes: np.ndarray | None = None  # (V,) bytes that each token stands for; None: tokens are bytes
    tokenizer: str = BYTES_ALONE  # or the sha256 of a tokenizer.json

    @property
    def split(self) -> int:
        """The first held-out token: training ends before it, validation begins with it."""
        return len(self.tokens) - len(self.tokens) // HELD_OUT

    def batch(self, step: int, global_batch: int, T: int, seed: int) -> Rows:
        """tokens, targets (G, T) int64: G places of the training part, drawn anew each step.

        Errors: DataError where the text is too short (see ``check``).
        """
        self.check(T)
        rng = np.random.default_rng([seed, step])
        return self._rows(rng.integers(0, self.split - T, global_batch), T)

    def validation(self, k: int, global_batch: int, T: int) -> Rows:
        """tokens, targets (G, T) int64: the next G rows of the held-out part, in its order.

        After ``validation_rows`` rows it starts again.  Errors: as ``batch``.
        """
        rows = np.arange(k * global_batch, (k + 1) * global_batch) % self.validation_rows(T)
        return self._rows(self.split + rows * T, T)

    def validation_rows(self, T: int) -> int:
        """How many different rows of T tokens ``validation`` has to give."""
        self.check(T)
        return (len(self.tokens) - self.split - 1) // T

    def check(self, T: int) -> None:
        """Is there one whole row, and the token after it, in either part?  Raises DataError."""
        N = len(self.tokens)
        if N // HELD_OUT <= T:
            longest = N // HELD_OUT - 1
            raise DataError(
                f"the held-out tenth of the text must be longer than a row: {self.name} has {N} "
                f"tokens, a tenth is {N // HELD_OUT}, T = {T}. Use a text of at least "
                f"{HELD_OUT * (T + 1)} bytes" + (f", or T = {longest}" if longest > 0 else "") + "."
            )

    def identity(self) -> dict:
        """What belongs into every result: plain values, for JSON."""
        fields = ("name", "documents", "size", "sha256", "tokenizer")
        return {field: getattr(self, field) for field in fields}

    def _rows(self, starts: np.ndarray, T: int) -> Rows:
        rows = self.tokens[starts[:, None] + np.arange(T + 1)].astype(np.int64)
        return rows[:, :-1], rows[:, 1:]


def load(
    files: Sequence[str | Path] | None = None, V: int = BYTES, tokenizer: Tokenizer | None = None
) -> Corpus:
    """The text of ``files``: paths, or ``topics`` (the default) or ``stdlib``, which every Python
    brings along.  Its tokens are the tokenizer's, or else bytes.

    Errors: DataError when a file cannot be read, or when V has no token for some byte.
    """
    found = [_read(file) for file in files or ["topics"]]
    names = [name for name, _ in found]
    documents = [text for _, texts in found for text in texts]
    whole = b"".join(documents)
    identity: dict[str, Any] = {
        "name": " + ".join(names[:3]) + (f" + {len(names) - 3} more" if len(names) > 3 else ""),
        "documents": len(documents),
        "size": len(whole),
        "sha256": hashlib.sha256(whole).hexdigest(),
    }
    if tokenizer:
        parts = [tokenizer.encode(text, identity["name"]) for text in documents]
        tokens = _joined(parts, tokenizer.end, np.uint32)
        return Corpus(**identity, tokens=tokens, sizes=tokenizer.sizes, tokenizer=tokenizer.sha256)
    top = max(whole, default=0)
    if top >= V:
        raise DataError(
            f"the vocabulary must have a token for every byte: the text has byte {top}, V = {V}. "
            f"Use V = {BYTES}" + (" or pure ASCII text." if V >= 128 else ".")
        )
    if V <= END:
        return Corpus(**identity, tokens=np.frombuffer(whole, np.uint8))
    return Corpus(
        **identity, tokens=_joined([np.frombuffer(t, np.uint8) for t in documents], END, np.uint16)
    )


def agree(corpus: Corpus, comm: Any) -> None:
    """Did every rank read the same bytes?  Raises the same DataError on every rank if not.

    Communicates: one allgather of the identity over ``comm``, the whole job.
    """
    said = comm.allgather(tuple(corpus.identity().values()))
    if len(set(said)) > 1:
        lines = [
            f"rank {rank} {name}, {documents} documents, {size} bytes, sha256 {sha256[:12]}"
            for rank, (name, documents, size, sha256, _) in enumerate(said)
            if said.index(said[rank]) == rank
        ]
        raise DataError(
            "every rank must read the same text: " + "; ".join(lines) + ". Use the same Python on "
            "every host, or --data with a file that all of them see."
        )


def bits_per_byte(loss: float, targets: np.ndarray, sizes: np.ndarray | None = None) -> float:
    """``loss`` (nats per token, the mean over ``targets``) as bits per byte:

        loss · tokens / (ln 2 · bytes)

    Special tokens are predicted and paid for, but are no bytes: with V = 256 this is loss / ln 2.
    ``sizes``: bytes per token, a Corpus's.  NaN where the targets hold no byte at all.
    """
    count = int((targets < BYTES).sum() if sizes is None else sizes[targets].sum())
    return loss * targets.size / (log(2) * count) if count else float("nan")


def _joined(documents: list[np.ndarray], end: int | None, dtype: type) -> np.ndarray:
    """One row of all documents, ``end`` between two of them, where there is such a token."""
    between: np.ndarray = np.array([] if end is None else [end], dtype)
    parts: list[np.ndarray] = [part.astype(dtype) for text in documents for part in (text, between)]
    return np.concatenate(parts[:-1])


def _read(file: str | Path) -> tuple[str, list[bytes]]:
    """(name, documents) of a file, or of one of the texts that come with Python."""
    if file in BUILT_IN:
        texts = BUILT_IN[str(file)]()
        if not texts:
            raise DataError(
                f"this Python must have brought its {file} along: it has not. Install the whole "
                "standard library, or use --data FILE."
            )
        return f"{file} of Python {sys.version.split()[0]}", texts
    try:
        return Path(file).name, [Path(file).read_bytes()]
    except OSError as e:
        reason = (e.strerror or str(e)).lower()
        raise DataError(
            f"a text must be a file that can be read: {str(file)!r}: {reason}. "
            f"Use a path to a text file, or one of {', '.join(BUILT_IN)}."
        ) from None


def _topics() -> list[bytes]:
    """The English reference text behind Python's ``help()``: half a megabyte, 80 documents."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return []
    return [text.encode() for _, text in sorted(topics.items())]


def _stdlib() -> list[bytes]:
    """The sources of the standard library, without its tests: some ten megabytes."""
    root = Path(sysconfig.get_path("stdlib"))
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    ours = [name for name in sorted(files) if not NOT_OURS & set(name.split("/"))]
    return [files[name].read_bytes() for name in ours]


BUILT_IN: dict[str, Callable[[], list[bytes]]] = {"topics": _topics, "stdlib": _stdlib}
