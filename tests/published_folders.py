"""Folders of weights as others write them, from the models stored in tests/golden/published."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tparallel.weights import files

GOLDEN = Path(__file__).parent / "golden" / "published"
NAMES = sorted(file.stem for file in GOLDEN.glob("*.npz"))


def stored(name: str) -> tuple[dict, dict, np.ndarray, np.ndarray]:
    """(config.json, tensors, tokens (B, T), logits (B, T, V) in float64), of transformers."""
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        tensors = {k.removeprefix("tensor/"): file[k] for k in file if k.startswith("tensor/")}
        return json.loads(str(file["config"])), tensors, file["tokens"], file["logits"]


def write_folder(
    folder: Path,
    name: str,
    count: int = 1,
    dtype: str = "float32",
    edit: Callable[[dict, dict], None] = lambda config, tensors: None,
) -> Path:
    """A folder with so many safetensors files; ``edit`` changes what is about to be written."""
    config, tensors, _, _ = stored(name)
    tensors = {key: a.astype(dtype) for key, a in tensors.items()}
    edit(config, tensors)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if count == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    where = {key: f"part-{i % count}.safetensors" for i, key in enumerate(sorted(tensors))}
    for file in set(where.values()):
        save_file({key: tensors[key] for key in where if where[key] == file}, folder / file)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def bare(config: dict, tensors: dict) -> None:
    """As the first GPT-2 folders were: no prefix, and the causal mask among the weights."""
    for key in [*tensors]:
        tensors[key.removeprefix("transformer.")] = tensors.pop(key)
    tensors["h.0.attn.bias"] = np.tril(np.ones((1, 1, 8, 8), np.float32))


def assert_equal(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys()
    for name, a in wanted.items():
        assert np.array_equal(found[name], a), name


def load_all(folder: Path) -> dict:
    out: dict = {}
    for file in folder.glob("*.safetensors"):
        with files.opened(file) as tensors:
            out |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    return out
