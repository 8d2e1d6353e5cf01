"""A folder of checkpoints: their names, which are whole, which is the newest."""

import os
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CheckpointError
from . import manifest
from .manifest import Damaged

TEMPORARY = ".tmp"  # being written, or being removed: never read


class Checkpoint(NamedTuple):
    """A whole one."""

    path: Path
    content: dict

    @property
    def step(self) -> int:
        """How many updates are done."""
        return self.content["step"]


def path_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}"


def step_of(path: Path) -> int:
    """−1 for what is no checkpoint by its name."""
    found = re.fullmatch(r"step-(\d{6,})", path.name)
    return int(found[1]) if found else -1


def steps(folder: Path) -> list[Path]:
    """All that are checkpoints by their names, the newest first."""
    found = [path for path in folder.glob("step-*") if step_of(path) >= 0]
    return sorted(found, key=step_of, reverse=True)


def examine(path: Path, comm: Any = None) -> Checkpoint:
    """The checkpoint, every byte of it checked.  With ``comm`` its ranks share the work, and all
    return, or raise Damaged, alike.

    Communicates: one broadcast of the manifest, one allgather of what was found.
    """
    content, why = None, ""
    if comm is None or comm.rank == 0:
        try:
            content = manifest.read(path)
        except Damaged as e:
            why = str(e)
    if comm is not None:
        content, why = comm.bcast((content, why))
    if content is not None and comm is None:
        why = manifest.check_files(path, content["files"])
    elif content is not None:
        mine = manifest.check_files(path, content["files"], comm.rank, comm.size)
        why = next(filter(None, comm.allgather(mine)), "")
    if content is None or why:
        raise Damaged(why)
    return Checkpoint(path, content)


def is_whole(path: Path) -> bool:
    try:
        examine(path)
    except Damaged:
        return False
    return True


def newest(
    folder: Path, comm: Any, before: float = float("inf")
) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint of a folder (of an update < ``before``), and, for each one that
    is newer, why it is refused."""
    refused: list[str] = []
    for path in comm.bcast(steps(folder) if comm.rank == 0 else None):
        if step_of(path) < before:
            try:
                return examine(path, comm), refused
            except Damaged as e:
                refused.append(f"{path}: {e}")
    return None, refused


def opened(path: Path, comm: Any) -> Checkpoint:
    """This one.  Errors: CheckpointError on every rank, which names the newest whole one before."""
    try:
        return examine(path, comm)
    except Damaged as e:
        before = step_of(path) if step_of(path) >= 0 else float("inf")
        other, _ = newest(path.parent, comm, before)
        use = f"{other.path}, the newest whole one before it" if other else "another: none is"
        raise CheckpointError(f"a checkpoint must be whole: {path}: {e}. Use {use}.") from None


def appear(written: Path, path: Path) -> None:
    """Give a checkpoint that is complete its name: it was not there, now it is, whole."""
    sync(written)
    if path.exists():
        remove(path)  # a damaged one, or training would not have come by here again
    os.rename(written, path)
    sync(path.parent)


def remove(path: Path) -> None:
    """First its name, so that a half-removed one is never taken for a damaged one."""
    going = path.with_name(path.name + ".old" + TEMPORARY)
    os.rename(path, going)
    shutil.rmtree(going)


def remove_temporary(folder: Path) -> None:
    """What a job that was killed has left."""
    for path in folder.glob(f"step-*{TEMPORARY}"):
        shutil.rmtree(path)


def sync(folder: Path) -> None:
    """The names in a folder are on the disk when this returns."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
