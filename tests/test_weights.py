"""Weights of others: read by every rank in its own slices, equal logits, and written back."""

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from mpitest import mpi
from published_folders import (
    GOLDEN,
    NAMES,
    assert_equal,
    bare,
    load_all,
    stored,
    write_folder,
)
from safetensors.numpy import load_file

from tparallel.config import Layout, TrainConfig
from tparallel.evaluate import Evaluator, next_tokens
from tparallel.serial.context import context
from tparallel.serial.loss import cross_entropy_forward
from tparallel.serial.model import model_forward
from tparallel.serial.parameters import shapes
from tparallel.tensor_parallel.split import is_split, unshard
from tparallel.train import Trainer
from tparallel.weights import Folder, blocks, export_source, export_trainer, files

BOUNDS = {"float64": 1e-10, "float32": 1e-5}
LAYOUTS = {  # of at most four ranks
    "tp": Layout(tp=4),
    "sp": Layout(tp=2, sp="keep"),
    "pp": Layout(pp=2, microbatches=2),
    "gpipe": Layout(pp=2, dp=2, schedule="gpipe", microbatches=2),
    "zero": Layout(dp=4, zero=3),
    "tp pp": Layout(tp=2, pp=2, microbatches=4),
    "tp dp": Layout(tp=2, dp=2, zero=2),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("files", [1, 3])
def test_the_serial_model_gives_the_logits_of_transformers(name, files, tmp_path):
    """Weights from one file or from several with an index: float64 <= 1e-10, float32 <= 1e-5."""
    folder = Folder(write_folder(tmp_path, name, files))
    _, _, tokens, logits = stored(name)
    for dtype, bound in BOUNDS.items():
        params = {unit: folder.part(unit, dtype=dtype) for unit in shapes(folder.model)}
        found, _ = model_forward(tokens, params, context(folder.model, dtype))
        assert found.dtype == dtype
        assert np.abs(found - logits).max() <= bound * np.abs(logits).max()


@mpi(4, timeout=60)
@pytest.mark.parametrize("dtype", BOUNDS)
def test_every_layout_gives_the_logits_and_the_loss_of_transformers(comm, dtype, tmp_path):
    """All of ``LAYOUTS``, on a batch of three rows, which none of them divides, shorter than the
    model's: logits as before, the loss by its definition; and exports that are bit-equal."""
    parts = {name: comm.Split(int(comm.rank >= x.ranks), comm.rank) for name, x in LAYOUTS.items()}
    for family in ("gpt2", "llama3-tied", "qwen2-yarn"):
        if comm.rank == 0:
            write_folder(tmp_path / family, family, count=2)
        comm.Barrier()
        for name, layout in LAYOUTS.items():
            if comm.rank < layout.ranks:
                out = tmp_path / f"{family}-{name.replace(' ', '-')}"
                check_layout(parts[name], layout, family, dtype, tmp_path / family, out)


def check_layout(comm, layout: Layout, family: str, dtype: str, path: Path, out: Path) -> None:
    _, tensors, tokens, logits = stored(family)
    folder = Folder(path, T=tokens.shape[1])
    train = TrainConfig(global_batch=4, dtype=dtype)
    trainer = Trainer(folder.model, train, layout, comm, start=folder.part, learns=False)
    assert not trainer.store.grads and not any(trainer.store.optimizer.state.values())
    seen = np.full_like(logits, np.nan, dtype=dtype)

    def take(rows, words, block):
        seen[rows, :, words] = block

    found = Evaluator(trainer).loss(tokens, next_tokens(tokens), take)
    wanted = float(cross_entropy_forward(logits[:, :-1], tokens[:, 1:], 1)[0])
    export_trainer(trainer, out)
    trainer.close()
    assert abs(found - wanted) <= BOUNDS[dtype] * abs(wanted), (family, layout)
    if comm.rank == 0:
        error = np.abs(seen - logits).max()
        assert error <= BOUNDS[dtype] * np.abs(logits).max(), (family, layout)
        assert_equal(load_file(out / "model.safetensors"), cropped(tensors, tokens))


def cropped(tensors: dict, tokens: np.ndarray) -> dict:
    """The same model, for rows as long as these: its table of positions ends there."""
    T = tokens.shape[1]
    return {name: a[:T] if name == "transformer.wpe.weight" else a for name, a in tensors.items()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_import_and_export_give_back_the_same_bits(name, dtype, tmp_path):
    """Every tensor, by name, shape, dtype and bits; and config.json says the same model."""
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="needs the extra half")
        import ml_dtypes  # noqa: F401
    source = Folder(write_folder(tmp_path / "source", name, count=2, dtype=dtype))
    export_source(source, tmp_path / "out")
    found = load_all(tmp_path / "out")
    wanted = load_all(tmp_path / "source")
    assert {k: a.dtype.name for k, a in found.items()} == dict.fromkeys(wanted, dtype)
    assert_equal({k: a.view("u1") for k, a in found.items()},
                 {k: a.view("u1") for k, a in wanted.items()})  # fmt: skip
    assert Folder(tmp_path / "out").model == source.model
    assert not [*tmp_path.glob("*.part")]


def test_an_export_is_cut_into_files_of_a_bounded_size_with_an_index(tmp_path, monkeypatch):
    """Files of 4 kB: several, named as transformers names them, and read back to the same bits."""
    from tparallel.weights import export

    monkeypatch.setattr(export, "FILE_BYTES", 4096)
    source = Folder(write_folder(tmp_path / "source", "gpt2"))
    export_source(source, tmp_path / "out")
    names = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    n = len(names)
    assert n > 2 and names == [f"model-{i + 1:05}-of-{n:05}.safetensors" for i in range(n)]
    assert_equal(load_all(tmp_path / "out"), load_all(tmp_path / "source"))
    again = Folder(tmp_path / "out")
    assert all(
        np.array_equal(a, source.part("block.1")[k]) for k, a in again.part("block.1").items()
    )


def test_a_folder_of_the_first_years_is_read(tmp_path):
    """Names without the prefix, and the causal mask among the weights: the same parameters."""
    old = Folder(write_folder(tmp_path / "old", "gpt2", edit=bare))
    new = Folder(write_folder(tmp_path / "new", "gpt2"))
    for unit in shapes(new.model):
        assert_equal(old.part(unit), new.part(unit))


class Recorder:
    """An opened file that counts the numbers that it gives out of each tensor."""

    def __init__(self, file, given: dict):
        self.file, self.given, self.keys = file, given, file.keys

    def get_slice(self, name: str) -> "Slice":
        return Slice(self.file.get_slice(name), name, self.given)


class Slice:
    def __init__(self, tensor, name: str, given: dict):
        self.tensor, self.name, self.given = tensor, name, given
        self.get_shape, self.get_dtype = tensor.get_shape, tensor.get_dtype

    def __getitem__(self, where):
        found = self.tensor[where]
        self.given[self.name] = self.given.get(self.name, 0) + found.size
        return found


@pytest.mark.parametrize("name", NAMES)
def test_a_rank_reads_its_own_slices_and_no_whole_tensor_that_is_split(name, tmp_path, monkeypatch):
    """tp = 2, counted at the library's door: the ranks read every number of a split tensor once
    between them, each at most half (and a row of the vocabulary), of the others all; opening the
    folder reads none.  Put together, their parts are the whole."""
    path, given = write_folder(tmp_path, name, count=2), {}
    whole = Folder(path)
    plain = files.opened

    @contextmanager
    def counted(file):
        with plain(file) as tensors:
            yield Recorder(tensors, given)

    monkeypatch.setattr(files, "opened", counted)
    ranks = [Folder(path), Folder(path)]
    assert not given
    split = {row.theirs for _, row in whole.architecture.rows(whole.model) if is_split(row.ours)}
    sizes = {key: a.size for key, a in stored(name)[1].items()}
    parts, read = [], []
    for rank, folder in enumerate(ranks):
        given.clear()
        parts.append({unit: folder.part(unit, rank, 2) for unit in shapes(whole.model)})
        read.append(dict(given))
        assert folder.bytes_read == 4 * sum(given.values())
    row = whole.model.D * (whole.model.V % 2)
    for key, size in sizes.items():
        one, other = read[0][key], read[1][key]
        if key in split:
            assert one + other == size and abs(one - other) in (0, row), key
        else:
            assert one == other == size, key
    for unit, dims in shapes(whole.model).items():
        assert_equal(unshard([p[unit] for p in parts], dims), whole.part(unit))


def test_a_pattern_is_a_slice_or_is_refused():
    """The first third of a dim; some heads of it; K cut across heads is no single slice."""
    sizes = {"D": 4, "H": 6, "K": 2}
    assert blocks.shape("D (1/3 H K)", sizes) == (4, 36)
    found = blocks.slices("D (1/3 H K)", sizes, {"H": slice(2, 4)})
    assert found == (slice(0, 4), slice(12 + 4, 12 + 8))
    with pytest.raises(ValueError, match="not one slice"):
        blocks.slices("(H K) D", sizes, {"K": slice(0, 1)})


def test_the_stored_models_stay_small():
    """They are committed: together below 200 kB."""
    assert 0 < sum(file.stat().st_size for file in GOLDEN.glob("*.npz")) < 200_000
