"""A checkpoint as weights: what ``Folder`` is for other people's models, for our own.

Every rank reads its own slices here too.  A checkpoint in half precision holds the float32 master
weights: asked for in that half they are the numbers that the model computed with.
"""

from pathlib import Path
from typing import Any

from ..backend import xp
from ..checkpoint import Checkpoint, newest
from ..checkpoint import opened as checked
from ..checkpoint.folder import step_of
from ..checkpoint.load import Reader
from ..checkpoint.manifest import NAME
from ..checkpoint.resume import settings
from ..config import ModelConfig, replace
from ..errors import DataError, WeightsError
from ..serial.parameters import shapes
from ..tensor_parallel.split import cut
from ..tokenizer import BYTES, Tokenizer
from .folder import Folder


class Saved:
    """A checkpoint, or the newest whole one of a folder.  ``T``: as for ``Folder``.

    Errors: WeightsError, CheckpointError where there is none that is whole.
    Communicates: over ``comm``, whose ranks share the work of checking every byte of it
    """

    def __init__(self, path: str | Path, T: int = 0, comm: Any = None):
        self.checkpoint = _found(Path(path), comm or _alone())
        self.path: Path = self.checkpoint.path
        self.model = _model(self.checkpoint, T)
        self.dtype = self.checkpoint.content["train"]["dtype"]
        self._reader = Reader(self.checkpoint)

    def tokenizer(self) -> Tokenizer | None:
        """None: bytes.  Errors: DataError where the checkpoint's text was cut by a tokenizer."""
        by = self.checkpoint.content["text"].get("tokenizer", BYTES)
        if by != BYTES:
            raise DataError(
                f"text must be cut as in training: {self.path} was trained on the tokens of a "
                f"tokenizer.json (sha256 {by[:12]}). Use --tokenizer DIR, the folder that has it."
            )
        return None

    def part(self, unit: str, rank: int = 0, n: int = 1, dtype: Any = "float32") -> dict:
        """What tp rank ``rank`` of ``n`` holds of a layer (or of ``vocab``, the shared table)."""
        return {
            name: xp.asarray(
                self._reader.read("params", f"{unit}.{name}", cut(name, shape, rank, n), dtype)
            )
            for name, shape in shapes(self.model)[unit].items()
        }


Source = Folder | Saved


def opened(path: str | Path, T: int = 0, comm: Any = None) -> Source:
    """A model's folder or a checkpoint: ``model``, and ``part`` with this rank's parameters."""
    if not (Path(path) / "config.json").exists() and is_checkpoint(Path(path)):
        return Saved(path, T, comm)
    return Folder(path, T)


def is_checkpoint(path: Path) -> bool:
    return step_of(path) >= 0 or (path / NAME).exists() or any(path.glob("step-*"))


def _found(path: Path, comm: Any) -> Checkpoint:
    if step_of(path) >= 0 or (path / NAME).exists():
        return checked(path, comm)
    found, refused = newest(path, comm)
    if found is None:
        raise WeightsError(
            f"a folder of checkpoints must hold a whole one: {'; '.join(refused)}. Use another."
        )
    return found


def _model(checkpoint: Checkpoint, T: int) -> ModelConfig:
    model, _, _ = settings(checkpoint, {}, {"steps": checkpoint.step + 1})
    if T > model.T:
        raise WeightsError(
            f"rows are at most as long as those that the model was made for: T = {T}, "
            f"{checkpoint.path} has {model.T}. Use T of at most {model.T}."
        )
    return replace(model, T=T or model.T)


def _alone() -> Any:
    from mpi4py import MPI

    return MPI.COMM_SELF
