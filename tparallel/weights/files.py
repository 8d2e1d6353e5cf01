"""The safetensors files of a folder: which tensor is where, and slices of it.

A file is mapped, not loaded: a slice copies its own bytes and no others.  Nothing here can run
code that a file brings along (a pickled .bin can), and nothing is fetched from anywhere.

Source: the safetensors format, https://huggingface.co/docs/safetensors
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from ..errors import WeightsError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}


class Stored(NamedTuple):
    """A tensor as a header describes it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


def listed(folder: Path) -> dict[str, Stored]:
    """Every tensor of the folder, from the headers of its files.

    Errors: WeightsError where there is no such file, or one cannot be used.
    """
    out: dict[str, Stored] = {}
    for file in _files(folder):
        with opened(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118 (it is no dict)
                header = tensors.get_slice(name)
                out[name] = Stored(file, tuple(header.get_shape()), header.get_dtype())
    for name, stored in out.items():
        _check_dtype(name, stored)
    return out


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """The file, mapped into memory for as long as it is used."""
    try:
        with safe_open(file, framework="numpy") as tensors:
            yield tensors
    except (OSError, SafetensorError) as e:
        raise WeightsError(
            f"weights must be whole safetensors files: {file}: {e}. Copy or download it again."
        ) from None


def read(tensors: Any, name: str, where: tuple[slice, ...]) -> np.ndarray:
    """One slice of one tensor of an opened file."""
    return tensors.get_slice(name)[where]


def read_json(file: Path) -> dict:
    """Errors: WeightsError where it is no file, or no JSON object."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(
            f"a model is a folder with config.json and safetensors files: there is no {file}. "
            "Use the folder that save_pretrained has written, or that tparallel export has."
        ) from None
    except (OSError, ValueError) as e:
        raise WeightsError(f"{file.name} must be readable JSON: {file}: {e}.") from None
    if not isinstance(found, dict):
        raise WeightsError(f"{file.name} must be a JSON object: {file} is none. Copy it again.")
    return found


def _files(folder: Path) -> list[Path]:
    if (folder / INDEX).exists():
        names = sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))
        for name in names:
            if name != Path(name).name:
                raise WeightsError(
                    f"an index names files beside it: {folder / INDEX} names {name!r}. Use a "
                    "folder that holds all of its files."
                )
        return [folder / name for name in names]
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    others = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
    if others:
        raise WeightsError(
            f"weights must be safetensors files: {folder} has {others[0]}, a pickle, which can run "
            "any code when it is read. Convert it where you trust it: transformers' "
            "from_pretrained and save_pretrained write safetensors."
        )
    raise WeightsError(
        f"a model folder must hold {SINGLE} or {INDEX}: {folder} has neither. Use the folder of a "
        "whole model."
    )


def _check_dtype(name: str, stored: Stored) -> None:
    if stored.dtype not in DTYPES:
        raise WeightsError(
            f"weights must be floating-point numbers of 2, 4 or 8 bytes: {name} is stored as "
            f"{stored.dtype}. Use the model before it was quantised."
        )
    if stored.dtype == "BF16" and find_spec("ml_dtypes") is None:
        raise WeightsError(
            f"weights in bfloat16 need the package ml_dtypes: {name} is stored so, and it is not "
            "installed. Install the extra half, or convert the weights to float16 or float32."
        )
    if stored.dtype == "BF16":
        import ml_dtypes  # noqa: F401  (NumPy knows the dtype by name once it is imported)
