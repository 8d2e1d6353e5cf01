"""Save a checkpoint: each rank writes what it is the first to hold, then rank 0 makes it appear.

    every rank   writes and fsyncs DIR/step-000100.tmp/rank-RRRR.safetensors
    all          tell each other that it went well, or what did not
    rank 0       writes and fsyncs the manifest, fsyncs the folder, renames it to DIR/step-000100,
                 fsyncs DIR; then removes checkpoints that are too old

The share of a rank is its ZeRO shard of every vector, whatever the ZeRO stage is: what several dp
ranks hold whole is written by all of them together, each its part, and every number once.
"""

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from .. import __version__, launch
from ..backend import to_host
from ..config import as_dict
from ..errors import CheckpointError
from . import folder, manifest
from .box import shape_of
from .pieces import origin, pieces


class Saver:
    """Saves what ``trainer`` goes on from; every method is called on every rank.

    ``text``: what identifies the training text.  ``step``: how many updates the trainer has done.
    ``keep``: how many checkpoints stay, 0 for all.  ``background``: a thread writes a copy while
    training goes on, which takes the memory of this rank's share once more.

    Errors: CheckpointError on every rank when one of them cannot write, or where checkpoints of
    later steps are there already: two runs would be mixed.  What is there stays as it is.
    """

    def __init__(
        self,
        trainer,
        where: str | Path,
        text: dict,
        step: int = 0,
        keep: int = 0,
        background: bool = False,
    ):
        self.trainer, self.where, self.text = trainer, Path(where), text
        self.keep, self.background = keep, background
        self.comm, self.step = trainer.mesh.comm, step
        self.file = f"rank-{self.comm.rank:04d}.safetensors"
        self.path, self.temporary = Path(), Path()
        self.writer: threading.Thread | None = None
        self.problem = ""
        self._on_rank_0(self._prepare)

    def save(self, step: int) -> None:
        """A checkpoint after ``step`` updates.  It is there when this returns; ``background``:
        when a later :meth:`poll` or :meth:`finish` does."""
        self.finish()
        launch.at(f"the checkpoint of step {step}")
        self.step, self.path = step, folder.path_of(self.where, step)
        self.temporary = self.path.with_name(self.path.name + folder.TEMPORARY)
        self._on_rank_0(self.temporary.mkdir)
        self.content = self._settings()
        self.boxes, arrays = self._share()
        if self.background:
            arrays = {key: a.copy() for key, a in arrays.items()}
            self.writer = threading.Thread(target=self._write, args=(arrays,), daemon=True)
            self.writer.start()
        else:
            self._write(arrays)
            self._complete()

    def poll(self) -> None:
        """Between two steps: once every rank has written its share, the checkpoint appears."""
        if self.writer and not self.comm.allreduce(self.writer.is_alive()):
            self.finish()

    def finish(self) -> None:
        """Wait for what was begun."""
        if self.writer:
            self.writer.join()
            self.writer = None
            self._complete()

    def _share(self) -> tuple[dict[str, list], dict[str, np.ndarray]]:
        """What this rank writes: {tensor: boxes}, and {key: array}; views, on the host."""
        store, arrays = self.trainer.store, {}
        boxes: dict[str, list] = {}
        for bucket, part in store.partitions.items():
            start = store.shard.rank * part.shard
            for piece in pieces(self.trainer, bucket, start, start + part.shard):
                if not piece.first:
                    continue
                boxes.setdefault(piece.name, []).append([[s.start, s.stop] for s in piece.box])
                for kind, vectors in store.state().items():
                    begin = origin(self.trainer, bucket, vectors[bucket])
                    held = vectors[bucket][piece.at.start - begin : piece.at.stop - begin]
                    key = manifest.key(kind, piece.name, piece.box)
                    arrays[key] = to_host(held).reshape(shape_of(piece.box))
        return boxes, arrays

    def _settings(self) -> dict:
        trainer = self.trainer
        return {
            "step": self.step,
            "saved": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "tparallel": __version__,
            "model": as_dict(trainer.model),
            "train": as_dict(trainer.train),
            "layout": as_dict(trainer.layout),
            "text": self.text,
            "loss_scale": trainer.store.loss_scale.state(),
            "kinds": [*trainer.store.state()],
        }

    def _write(self, arrays: dict[str, np.ndarray]) -> None:
        """This rank's file, on the disk; what goes wrong is said in :meth:`_complete`."""
        path = self.temporary / self.file
        try:
            path.touch()
            mode = path.stat().st_mode  # safetensors makes files that only their owner may read
            save_file(arrays, path)
            path.chmod(mode)
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            self.entry = {"bytes": path.stat().st_size, "sha256": manifest.checksum(path)}
        except (OSError, SafetensorError) as e:
            self.problem = self._cannot_write(path, e)

    def _complete(self) -> None:
        """All shares are written: the checkpoint appears."""
        self._agree(self.problem)
        shares = self.comm.gather((self.file, self.entry, self.boxes))
        self._on_rank_0(lambda: self._appear(shares))

    def _appear(self, shares: list[tuple[str, dict, dict]]) -> None:
        tensors: dict[str, dict] = {}
        for file, _, boxes in shares:
            for name, mine in boxes.items():
                tensors.setdefault(name, {})[file] = mine
        files = {file: entry for file, entry, _ in shares}
        manifest.write(self.temporary, {**self.content, "tensors": tensors, "files": files})
        folder.appear(self.temporary, self.path)
        older = [path for path in folder.steps(self.where) if folder.step_of(path) <= self.step]
        for path in older[self.keep :] if self.keep else ():
            folder.remove(path)

    def _prepare(self) -> None:
        if not self.where.exists():
            self.where.mkdir(parents=True)
            folder.sync(self.where.parent)
        folder.remove_temporary(self.where)
        later = [path for path in folder.steps(self.where) if folder.step_of(path) > self.step]
        for path in filter(folder.is_whole, later):
            raise CheckpointError(
                "two runs must not mix their checkpoints: this one starts after step "
                f"{self.step}, and there is {path}. Use --resume to go on from it, or --save with "
                "another folder."
            )

    def _on_rank_0(self, work: Callable[[], None]) -> None:
        problem = ""
        if self.comm.rank == 0:
            try:
                work()
            except OSError as e:
                problem = self._cannot_write(Path(e.filename or self.where), e)
            except CheckpointError as e:
                problem = str(e)
        self._agree(problem)

    def _agree(self, problem: str) -> None:
        """If one rank has a problem, every rank raises it."""
        problem = next(filter(None, self.comm.allgather(problem)), "")
        if problem:
            if self.comm.rank == 0 and self.temporary.name:
                shutil.rmtree(self.temporary, ignore_errors=True)
            raise CheckpointError(problem)

    def _cannot_write(self, path: Path, error: Exception) -> str:
        return (
            f"every rank must be able to write its part of a checkpoint: rank {self.comm.rank}, "
            f"{path}: {error}. Use --save with a folder that can be written and has room; the "
            "checkpoints that are there are as they were."
        )
