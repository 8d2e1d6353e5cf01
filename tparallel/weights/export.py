"""A folder that transformers loads, from a model of ours: the tables of ``architectures.py`` read
the other way.

A layer comes whole to rank 0, is written, and is let go of, so that rank 0 holds no more than one
file's worth.  The folder is made beside its final name and moved there when it is complete.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from ..backend import to_host
from ..config import ModelConfig
from ..errors import WeightsError
from ..serial.model import layer_view, layers_of
from ..serial.parameters import shapes
from ..tensor_parallel.split import unshard
from ..zero.precision import storage_dtype
from . import blocks
from .files import INDEX, SINGLE, read_json
from .folder import SIZES
from .saved import Saved, Source
from .settings import architecture_for, config_json

FILE_BYTES = 4 << 30  # a file is ended when it has this much
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")  # of the same tokenizer
Layers = Iterable[tuple[str, dict]]  # (layer, {name: the whole array}), in any order


def check(model: ModelConfig, out: str | Path) -> None:
    """Can this model be exported, to a folder of this name?  Raises WeightsError."""
    architecture_for(model)
    path = Path(out)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise WeightsError(f"an export makes a new folder: {path} exists. Use another name.")
    if not os.access(_existing(path), os.W_OK):
        raise WeightsError(
            f"an export must be able to make its folder: {_existing(path)} cannot be written. Use "
            "another place."
        )


def export(
    model: ModelConfig,
    layers: Layers,
    dtype: str,
    out: str | Path,
    tokenizer: str | Path | None = None,
) -> None:
    """Write the folder; ``dtype`` is that of the weights in it, ``tokenizer`` the folder whose
    tokenizer's files and special ids belong to them (None: tokens are bytes).

    Errors: those of ``check``; WeightsError where the disk does not take it: there is nothing of
    that name then.
    """
    check(model, out)
    path = Path(out)
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    try:
        part.mkdir(parents=True)
        _fill(part, model, layers, dtype, tokenizer)
        if path.exists():
            path.rmdir()
        part.rename(path)
    except (OSError, SafetensorError) as e:
        raise WeightsError(
            f"an export must be written whole: {path} was not made: {e}. Use a place with more "
            "room."
        ) from e
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _fill(
    part: Path, model: ModelConfig, layers: Layers, dtype: str, tokenizer: str | Path | None
) -> None:
    config = {**config_json(model, dtype), **dict.fromkeys(SPECIAL)}
    beside = Path(tokenizer) if tokenizer else part
    if (beside / "config.json").exists():
        theirs = read_json(beside / "config.json")
        config |= {key: theirs[key] for key in SPECIAL if key in theirs}
    (part / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    _write(part, (_theirs(model, *layer, dtype) for layer in layers))
    for name in TOKENIZER:
        if (beside / name).exists():
            shutil.copy(beside / name, part)


def export_trainer(trainer: Any, out: str | Path, tokenizer: str | Path | None = None) -> None:
    """Write the folder of a model in training, in the dtype that it is kept in; from rank 0."""
    layers = of_trainer(trainer)
    if trainer.mesh.comm.rank == 0:
        export(trainer.model, layers, trainer.train.dtype, out, tokenizer)
    for _ in layers:
        pass  # the other ranks send


def export_source(
    source: Source, out: str | Path, dtype: str = "", tokenizer: str | Path | None = None
) -> None:
    """Write a folder once more, or a checkpoint; in another dtype if one is given.

    Errors: DataError where a checkpoint needs a tokenizer, and none is given.
    """
    dtype = dtype or source.dtype
    if tokenizer is None and isinstance(source, Saved):
        source.tokenizer()
    export(source.model, of_source(source, dtype), dtype, out, tokenizer or source.path)


def of_trainer(trainer: Any) -> Iterator[tuple[str, dict]]:
    """Every layer of a model in training, whole, on rank 0; on the other ranks, which must go
    through it too, empty.

    Communicates: each layer's parameters to rank 0, and under ZeRO 3 over dp (not counted)
    """
    mesh, store = trainer.mesh, trainer.store
    mine = {layer for chunk in trainer.executor.chunks.values() for layer in chunk.layers}
    whole = shapes(trainer.model)
    for layer in layers_of(whole):
        with mesh.ledger.closed():
            p = store.gather(layer) if layer in mine else {}
        send = layer in mine and mesh.coords.dp == 0  # replicas over dp are equal
        parts = mesh.comm.gather({n: to_host(a) for n, a in p.items()} if send else None)
        parts = [part for part in parts or [] if part]
        yield layer, unshard(parts, layer_view(whole, layer)) if parts else {}


def of_source(source: Source, dtype: str) -> Iterator[tuple[str, dict]]:
    """Every layer of a folder of weights or a checkpoint, whole."""
    whole, kept = shapes(source.model), storage_dtype(dtype)
    for layer in layers_of(whole):
        tied = {"vocab": source.part("vocab", dtype=kept)} if "vocab" in whole else {}
        p = layer_view({**tied, layer: source.part(layer, dtype=kept)}, layer)
        yield layer, {name: to_host(a) for name, a in p.items()}


def _theirs(model: ModelConfig, layer: str, p: dict, dtype: str) -> dict[str, np.ndarray]:
    """Their tensors of one layer of ours."""
    a = architecture_for(model)
    sizes = {letter: getattr(model, letter) for letter in SIZES}
    out: dict[str, np.ndarray] = {}
    for of, row in a.rows(model):
        if of == layer:
            shape = blocks.shape(row.their_dims, sizes)
            whole = out.setdefault(row.theirs, np.empty(shape, storage_dtype(dtype)))
            block = p[row.ours][blocks.slices(row.our_dims, sizes, {})]
            block = block.reshape([sizes[letter] for letter in blocks.letters(row.our_dims)])
            there = blocks.slices(row.their_dims, sizes, {})
            whole[there] = blocks.to_theirs(block, row.our_dims, row.their_dims)
    return out


def _write(folder: Path, layers: Iterable[dict[str, np.ndarray]]) -> None:
    """All tensors into as many files as they need, and an index if that is more than one."""
    names: list[list[str]] = []  # in each file
    held: dict[str, np.ndarray] = {}
    total = 0

    def end_file() -> None:
        save_file(held, folder / f"{len(names)}", metadata={"format": "pt"})
        names.append([*held])
        held.clear()

    for tensors in layers:
        held |= tensors
        total += sum(a.nbytes for a in tensors.values())
        if sum(a.nbytes for a in held.values()) >= FILE_BYTES:
            end_file()
    if held:
        end_file()
    n = len(names)
    final = [SINGLE] if n == 1 else [f"model-{i + 1:05}-of-{n:05}.safetensors" for i in range(n)]
    for i, file in enumerate(final):
        (folder / f"{i}").rename(folder / file)
        shutil.copymode(folder / "config.json", folder / file)  # safetensors makes them private
    if n > 1:
        where = {name: file for file, own in zip(final, names) for name in own}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())
