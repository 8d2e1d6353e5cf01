"""Load a checkpoint of any layout: every rank reads where what it keeps overlaps with what was
written, and nothing else."""

from math import prod
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ..backend import xp
from ..errors import CheckpointError
from . import manifest
from .box import Box, moved, overlap, shape_of
from .folder import Checkpoint
from .pieces import origin, pieces


def load(trainer, checkpoint: Checkpoint) -> None:
    """Parameters, optimizer state and loss scale of ``trainer`` become those of the checkpoint.

    Errors: CheckpointError on every rank where the checkpoint lacks a number that is needed.
    Communicates: one allgather of whether that was so.
    """
    store = trainer.store
    reader, problem = Reader(checkpoint), ""
    kept = [*store.state().items()]
    if trainer.train.is_half:
        kept.append(("params", store.params))  # the halves of the masters
    try:
        for kind, vectors in kept:
            for bucket, vector in vectors.items():
                start = origin(trainer, bucket, vector)
                for piece in pieces(trainer, bucket, start, start + len(vector)):
                    values = reader.read(kind, piece.name, piece.box, trainer.train.master_dtype)
                    fill(vector[piece.at.start - start : piece.at.stop - start], values)
    except (SafetensorError, OSError, LookupError) as e:
        problem = f"{checkpoint.path}: {e}"
    if problem := next(filter(None, trainer.mesh.comm.allgather(problem)), ""):
        raise CheckpointError(
            f"a checkpoint must hold every number of the model: {problem}. Use another one."
        )
    store.loss_scale.restore(checkpoint.content["loss_scale"])
    store.moves.parameters_change()


def fill(held, values: np.ndarray) -> None:
    """``held`` lies beside the parameters or, offloaded, on the host."""
    values = values.reshape(-1)
    held[...] = values if isinstance(held, np.ndarray) else xp.asarray(values)


class Reader:
    """The tensors of a checkpoint, box by box; its files stay on the disk."""

    def __init__(self, checkpoint: Checkpoint):
        self.path, self.content = checkpoint
        self.files: dict[str, Any] = {}

    def read(self, kind: str, name: str, box: Box, dtype: Any) -> np.ndarray:
        """``box`` of the whole tensor, put together from all that overlaps it."""
        out, found = np.empty(shape_of(box), dtype), 0
        for file, written in self.content["tensors"].get(name, {}).items():
            for source in (tuple(slice(*ends) for ends in dims) for dims in written):
                if both := overlap(box, source):
                    part = self._open(file).get_slice(manifest.key(kind, name, source))
                    out[moved(both, box, -1)] = part[moved(both, source, -1)]
                    found += prod(shape_of(both))
        if found != out.size:
            raise LookupError(f"{found} of {out.size} numbers of {kind} {name} are there")
        return out

    def _open(self, file: str) -> Any:
        if file not in self.files:
            self.files[file] = safe_open(self.path / file, framework="numpy")
        return self.files[file]
