"""Answers in files: the place is looked at before the work, the name is given after it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from ..errors import ConfigError


def check_place(path: str, comm: Any) -> None:
    """Can rank 0 write there?  Raises ConfigError on every rank if not."""
    parent = Path(path).absolute().parent
    fine = parent.is_dir() and os.access(parent, os.W_OK) and not Path(path).is_dir()
    if not comm.bcast(fine):
        raise ConfigError(
            f"an answer needs a place where it can be written: {path!r} is none. Use a file in a "
            "folder that exists."
        )


@contextmanager
def logits_file(path: str | None, shape: tuple, dtype: str, rank: int) -> Iterator[Any]:
    """What takes blocks of logits, on every rank alike; rank 0 writes the file, which has its name
    when it is complete."""
    if not path:
        yield None
        return
    part = f"{path}.part"
    out = open_memmap(part, mode="w+", dtype=dtype, shape=shape) if rank == 0 else np.empty(0)

    def take(rows: slice, words: slice, logits: np.ndarray) -> None:
        out[rows, :, words] = logits

    yield take
    if isinstance(out, np.memmap):
        out.flush()
        os.replace(part, path)


def write(path: str, text: str) -> None:
    """A text file, which has its name when it is complete."""
    Path(f"{path}.part").write_text(text, encoding="utf-8")
    os.replace(f"{path}.part", path)
