"""``manifest.json``: what a checkpoint holds, and how to know that it is what was written.

    format, version           these two are read first
    sha256                    of everything else in this file
    step                      updates that are done: the next batch is number ``step``
    model, train, layout      all settings; text: what identifies it; loss_scale: its state
    kinds                     params (in half precision: the master weights), m, v
    tensors                   {name: {file: boxes, as [start, stop] for each dim}}
    files                     {name: bytes, sha256}

A box of a tensor is stored as the array ``KIND/NAME[BOX]``, e.g. ``m/block.0.mlp.w_in[0:4, 8:16]``.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from .box import Box, subscript

FORMAT, VERSION = "tparallel checkpoint", 1
NAME = "manifest.json"


class Damaged(Exception):
    """A checkpoint that cannot be used; the text says why."""


def write(folder: Path, content: dict) -> None:
    """Into ``folder``, and on the disk when this returns."""
    head = {"format": FORMAT, "version": VERSION, "sha256": digest(content)}
    with open(folder / NAME, "w", encoding="utf-8") as file:
        json.dump({**head, **content}, file)
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> dict:
    """The content; raises Damaged where it is not ours, newer than we are, or not as written."""
    try:
        content: Any = json.loads((folder / NAME).read_bytes())
    except FileNotFoundError:
        raise Damaged(f"it has no {NAME}") from None
    except OSError as e:
        raise Damaged(f"{NAME}: {(e.strerror or str(e)).lower()}") from None
    except ValueError:
        raise Damaged(f"{NAME} is no JSON: cut off or damaged") from None
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise Damaged(f"{NAME} is not that of a {FORMAT}")
    version = content.pop("version", None)
    if version != VERSION:
        newer = isinstance(version, int) and version > VERSION
        raise Damaged(
            f"its format is version {version}, this program knows version {VERSION}"
            + (": a newer tparallel reads it" if newer else "")
        )
    if content.pop("sha256", None) != digest(content):
        raise Damaged(f"{NAME} is not what was written: its checksum differs")
    if any(Path(name).name != name for name in content["files"]):
        raise Damaged(f"{NAME} names a file outside of its folder")
    return content


def digest(content: dict) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def check_files(folder: Path, files: dict, rank: int = 0, ranks: int = 1) -> str:
    """Why a file is not what was written, "" if all are; each rank looks at its share of them."""
    for name in sorted(files)[rank::ranks]:
        wanted = files[name]
        try:
            size = (folder / name).stat().st_size
            if size != wanted["bytes"]:
                return f"{name} has {size} bytes, {wanted['bytes']} were written"
            if checksum(folder / name) != wanted["sha256"]:
                return f"{name} is not what was written: its checksum differs"
        except OSError as e:
            return f"{name}: {(e.strerror or str(e)).lower()}"
    return ""


def checksum(path: Path) -> str:
    """As ``sha256sum`` prints it."""
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def key(kind: str, name: str, box: Box) -> str:
    return f"{kind}/{name}{subscript(box)}"
