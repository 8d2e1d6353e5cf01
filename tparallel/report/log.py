"""A log of a run as JSON lines: one header, then one line per step, each written at once.

    {"tparallel": "0.1.0", "model": {...}, "layout": {...}, "data": {...}, ...}
    {"step": 1, "loss": 5.55, "bits_per_byte": 8.0, "gradient_norm": 3.1, ...}

Whatever ends the job, every finished step is in the file.  A run that goes on from a checkpoint
goes on in its log: a header again, with ``resumed``, then the following steps.  Steps after the
checkpoint that a killed job had done are done again, and are in the file twice.
"""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__, backend
from ..config import Layout, ModelConfig, TrainConfig, as_dict
from ..data import Corpus
from ..errors import ConfigError
from ..serial.parameters import count


class Log:
    """The log of a job: written by rank 0, the same calls on every rank.  ``path`` None: no log.
    ``goes_on``: there may be a log at ``path`` already, one of the same model and text.

    Errors: ConfigError on every rank when there is another file already, or it cannot be made.
    Communicates: one broadcast over ``comm``, of whether rank 0 could open the file.
    """

    def __init__(self, path: str | None, comm: Any, header: dict, goes_on: bool = False):
        self._file, problem = None, ""
        if path and comm.rank == 0:
            try:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                mode = "a" if goes_on and _is_log_of(path, header) else "x"
                self._file = open(path, mode, encoding="utf-8")  # noqa: SIM115
            except FileExistsError:
                problem = "there is such a file. Use another name, or remove it"
            except OSError as e:
                problem = f"{(e.strerror or str(e)).lower()}. Use a path that can be written"
        if path and (problem := comm.bcast(problem)):
            own = ", or the log of the run that goes on" * goes_on
            raise ConfigError(f"--log must name a new file{own}: {path!r}: {problem}.")
        self.write(header)

    def write(self, line: dict) -> None:
        if self._file:
            finite = {k: None if _no_number(v) else v for k, v in line.items()}
            self._file.write(json.dumps(finite, allow_nan=False) + "\n")
            self._file.flush()

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *error: object) -> None:
        if self._file:
            self._file.close()


def header(
    model: ModelConfig, train: TrainConfig, layout: Layout, corpus: Corpus, resumed: int = 0
) -> dict:
    """The first line: all that the run depends on, plain values.  ``resumed``: the steps that
    were done before."""
    return {
        **({"resumed": resumed} if resumed else {}),
        **versions(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "ranks": layout.ranks,
        "parameters": count(model),
        "model": as_dict(model),
        "layout": as_dict(layout),
        "train": as_dict(train),
        "data": corpus.identity(),
    }


def versions() -> dict:
    """What a result depends on beside its configuration."""
    from mpi4py import MPI
    from mpi4py import __version__ as mpi4py

    return {
        "tparallel": __version__,
        "python": sys.version.split()[0],
        "numpy": np.__version__,
        "backend": backend.name,
        "mpi": MPI.Get_library_version().splitlines()[0].strip(),
        "mpi4py": mpi4py,
    }


def _is_log_of(path: str, header: dict) -> bool:
    """Does a file begin as a log of this model on this text does?"""
    try:
        with open(path, encoding="utf-8") as file:
            first = json.loads(file.readline())
        return all(first[part] == header[part] for part in ("model", "data"))
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _no_number(value: Any) -> bool:
    """JSON has no NaN and no infinity."""
    return isinstance(value, float) and not math.isfinite(value)
