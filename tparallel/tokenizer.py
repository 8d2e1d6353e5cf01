"""Text as the tokens of a model that others have trained: its tokenizer.json.

The byte-level tokens of data.py need none of this.  The library ``tokenizers`` does the work; it is
imported when a tokenizer.json is opened, and nothing is fetched from anywhere.

Source: Sennrich et al. 2016 (byte pair encoding); Radford et al. 2019, section 2.2 (on bytes)
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .errors import DataError

FILE = "tokenizer.json"
BYTES = "bytes"  # in place of a checksum, where there is no tokenizer
OTHERS = ("tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "tokenizer_config.json")


class Tokenizer:
    """``encode`` turns a document into ids; ``sizes[id]`` is the number of bytes that a token
    stands for (0 for special ones); ``end`` is put between documents, where the model has one;
    ``sha256`` of the file tells tokenizers apart."""

    def __init__(self, file: Path, V: int, end: int | None = None):
        try:
            import tokenizers
        except ImportError:
            raise DataError(
                f"a tokenizer.json is read by the package tokenizers: it is not installed, for "
                f"{file}. Install the extra hf, or give --tokens instead of --data."
            ) from None
        try:
            self._library = tokenizers.Tokenizer.from_file(str(file))
            said = json.loads(file.read_text(encoding="utf-8"))
        except Exception as e:  # the library raises nothing narrower
            raise DataError(f"{file} must be a tokenizer's file: {e}. Copy it again.") from None
        known = self._library.get_vocab(with_added_tokens=True)
        top = max(known.values(), default=0)
        if top >= V:
            raise DataError(
                f"every token must be in the model's vocabulary: {file} makes ids up to {top}, "
                f"V = {V}. Use the tokenizer of this model."
            )
        self.end, self.sha256 = end, hashlib.sha256(file.read_bytes()).hexdigest()
        special = {t["id"]: t for t in said.get("added_tokens", [])}
        on_bytes = '"ByteLevel"' in json.dumps(said.get("decoder"))
        self.sizes = np.zeros(V, np.int64)
        for word, i in known.items():
            if i in special:
                literal = not special[i]["special"]
                self.sizes[i] = len(word.encode()) if literal else 0
            else:
                self.sizes[i] = len(word) if on_bytes else _bytes_of_piece(word)

    def encode(self, text: bytes, name: str, special: bool = False) -> np.ndarray:
        """ids of one document; ``special``: with those tokens around it that the model expects.

        Errors: DataError where it is not UTF-8.
        """
        try:
            decoded = text.decode("utf-8")
        except UnicodeDecodeError as e:
            raise DataError(
                f"a tokenizer reads text in UTF-8: {name} has byte {text[e.start]:#04x} at "
                f"{e.start}. Convert the file."
            ) from None
        ids = self._library.encode(decoded, add_special_tokens=special).ids
        return np.array(ids, np.uint32)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens; U+FFFD for bytes that are no character."""
        return self._library.decode([*ids], skip_special_tokens=True)


def of_folder(folder: Path, V: int) -> Tokenizer | None:
    """The tokenizer of a model's folder; None where its tokens are bytes.

    Errors: DataError where the folder has a tokenizer of another form.
    """
    if (folder / FILE).exists():
        config, end = folder / "config.json", None
        if config.exists():
            end = json.loads(config.read_text(encoding="utf-8")).get("eos_token_id")
        end = end[0] if isinstance(end, list) else end
        return Tokenizer(folder / FILE, V, end if end is not None and end < V else None)
    for name in OTHERS:
        if (folder / name).exists():
            raise DataError(
                f"a tokenizer must come as {FILE}: {folder} has {name} alone. Save the tokenizer "
                "once more with transformers (a fast one), or give --tokens instead of --data."
            )
    return None


def _bytes_of_piece(word: str) -> int:
    """SentencePiece's notation: ``▁`` is a space, ``<0x0A>`` one byte."""
    if len(word) == 6 and word.startswith("<0x") and word.endswith(">"):
        return 1
    return len(word.replace("▁", " ").encode())
