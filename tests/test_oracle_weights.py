"""Models that transformers has made are read here; what is written here, transformers loads."""

import json

import numpy as np
import pytest
from mpitest import mpirun
from published_folders import NAMES, stored

from tparallel.serial.context import context
from tparallel.serial.model import model_forward
from tparallel.serial.parameters import shapes
from tparallel.weights import Folder, export_source

pytestmark = pytest.mark.oracle
pytest.importorskip("transformers", reason="needs the oracle extra: transformers")
HALVES = ["float16", "bfloat16"]
LAYOUTS = ["", "--tp 2 --pp 2 --schedule gpipe", "--tp 2 --dp 2 --zero 3", "--tp 2 --sp keep"]


def ours(path, tokens: np.ndarray, dtype: str) -> np.ndarray:
    folder = Folder(path)
    params = {unit: folder.part(unit, dtype=dtype) for unit in shapes(folder.model)}
    return model_forward(tokens, params, context(folder.model, dtype))[0]


def assert_near(found: np.ndarray, wanted: np.ndarray, bound: float) -> None:
    assert np.abs(found - wanted).max() <= bound * np.abs(wanted).max()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stored_in", ["float32", *HALVES])
def test_a_folder_of_transformers_gives_its_logits(name, stored_in, tmp_path):
    """save_pretrained, also in several files and in half: float64 <= 1e-10, float32 <= 1e-5."""
    import torch
    from oracle.published import logits_of, model_of, tokens_of

    if stored_in == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="needs the extra half")
    model, tokens = model_of(name, seed=3).to(getattr(torch, stored_in)), tokens_of(name)
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    wanted = logits_of(model, tokens)
    assert_near(ours(tmp_path, tokens, "float64"), wanted, 1e-10)
    assert_near(ours(tmp_path, tokens, "float32"), wanted, 1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_an_exported_folder_loads_in_transformers_with_equal_logits(name, tmp_path):
    """From a folder, through our names and back: AutoModelForCausalLM finds every weight."""
    from oracle.published import logits_of_folder, model_of, tokens_of

    model_of(name, seed=4).save_pretrained(tmp_path / "source")
    export_source(Folder(tmp_path / "source"), tmp_path / "out")
    tokens = tokens_of(name)
    found = logits_of_folder(tmp_path / "out", tokens)
    assert_near(found, logits_of_folder(tmp_path / "source", tokens), 1e-14)
    assert_near(ours(tmp_path / "out", tokens, "float64"), found, 1e-10)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("flags", LAYOUTS)
def test_a_run_in_any_layout_ends_in_what_transformers_loads(name, flags, tmp_path):
    """Trained for two steps from random weights on four ranks, exported, loaded: our logits of
    the exported folder, in the same layout, are theirs."""
    from oracle.published import CASES, logits_of_folder, model_of, tokens_of

    model_of(name).save_pretrained(tmp_path / "source")
    (tmp_path / "text").write_bytes(bytes(np.arange(2000) * 7 % CASES[name][1].vocab_size))
    np.save(tmp_path / "ids.npy", tokens_of(name))
    places = {n: str(tmp_path / n) for n in ("source", "text", "out", "ids.npy", "logits.npy", "a")}
    run = ["--weights", places["source"], "--data", places["text"], "--export", places["out"]]
    run += ["--steps", "2", "--validate-every", "0", *flags.split()]
    ended = mpirun(4, "-m", "tparallel", "train", *(run if flags else [*run, "--dp", "4"]))
    assert ended.code == 0, ended.out
    ask = ["--weights", places["out"], "--tokens", places["ids.npy"], "--json", places["a"]]
    ask += ["--logits", places["logits.npy"], "--dtype", "float64", *flags.split()]
    ended = mpirun(4, "-m", "tparallel", "eval", *ask)
    assert ended.code == 0, ended.out
    wanted = logits_of_folder(tmp_path / "out", tokens_of(name))
    assert_near(np.load(tmp_path / "logits.npy"), wanted, 1e-10)
    assert np.abs(wanted - logits_of_folder(tmp_path / "source", tokens_of(name))).max() > 1e-3
    assert np.isfinite(json.loads((tmp_path / "a").read_text())["loss"])


@pytest.mark.parametrize("name", NAMES)
def test_the_stored_logits_are_what_transformers_answers(name):
    """tests/golden/published, made anew: the same numbers to 1e-12."""
    from oracle.published import golden

    found, (config, tensors, tokens, logits) = golden(name), stored(name)
    assert json.loads(str(found["config"])) == config
    assert all(np.array_equal(found[f"tensor/{key}"], a) for key, a in tensors.items())
    assert np.array_equal(found["tokens"], tokens)
    assert_near(found["logits"], logits, 1e-12)
