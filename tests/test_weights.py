"""Weights of others: read by every rank in its own slices, equal logits, and written back."""

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from mpitest import mpi
from published_folders import GOLDEN, NAMES, bare, stored, write_folder
from safetensors.numpy import load_file

from tparallel.config import Layout, ModelConfig, TrainConfig
from tparallel.errors import TParallelError, WeightsError
from tparallel.evaluate import Evaluator, next_tokens
from tparallel.serial.context import context
from tparallel.serial.loss import cross_entropy_forward
from tparallel.serial.model import model_forward
from tparallel.serial.parameters import shapes
from tparallel.tensor_parallel.split import is_split, unshard
from tparallel.train import Trainer
from tparallel.weights import Folder, blocks, check, export_source, export_trainer, files
from tparallel.weights.settings import config_json, model_config

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
            write_folder(tmp_path / family, family, files=2)
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


def assert_equal(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys()
    for name, a in wanted.items():
        assert np.array_equal(found[name], a), name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_import_and_export_give_back_the_same_bits(name, dtype, tmp_path):
    """Every tensor, by name, shape, dtype and bits; and config.json says the same model."""
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="needs the extra half")
        import ml_dtypes  # noqa: F401
    source = Folder(write_folder(tmp_path / "source", name, files=2, dtype=dtype))
    export_source(source, tmp_path / "out")
    found = load_all(tmp_path / "out")
    wanted = load_all(tmp_path / "source")
    assert {k: a.dtype.name for k, a in found.items()} == dict.fromkeys(wanted, dtype)
    assert_equal({k: a.view("u1") for k, a in found.items()},
                 {k: a.view("u1") for k, a in wanted.items()})  # fmt: skip
    assert Folder(tmp_path / "out").model == source.model
    assert not [*tmp_path.glob("*.part")]


def load_all(folder: Path) -> dict:
    out: dict = {}
    for file in folder.glob("*.safetensors"):
        with files.opened(file) as tensors:
            out |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    return out


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
    path, given = write_folder(tmp_path, name, files=2), {}
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


def change(key: str, value):
    return lambda config, tensors: config.update({key: value})


def drop(name: str):
    return lambda config, tensors: tensors.pop(name)


def add(name: str, *shape: int):
    return lambda config, tensors: tensors.update({name: np.ones(shape, np.float32)})


REFUSED = {
    "architecture": (change("architectures", ["MixtralForCausalLM"]), "MixtralForCausalLM"),
    "activation": (change("activation_function", "relu"), "activation_function = relu"),
    "layer scaling": (
        change("scale_attn_by_inverse_layer_idx", True),
        "scale_attn_by_inverse_layer_idx = True",
    ),
    "unscaled scores": (change("scale_attn_weights", False), "scale_attn_weights = False"),
    "cross attention": (change("add_cross_attention", True), "add_cross_attention = True"),
    "quantised": (change("quantization_config", {"bits": 4}), "quantised weights"),
    "experts": (change("num_local_experts", 8), "a mixture of experts"),
    "alibi": (change("alibi", True), "ALiBi"),
    "missing": (drop("transformer.h.1.ln_2.bias"), "has no transformer.h.1.ln_2.bias"),
    "additional": (add("transformer.h.0.attn.q_norm.weight", 4), "h.0.attn.q_norm.weight has none"),
    "shape": (change("vocab_size", 40), "transformer.wte.weight is (37, 16)"),
    "own head": (add("lm_head.weight", 37, 16), "lm_head.weight differs from"),
    "integers": (
        lambda config, tensors: tensors.update({"transformer.ln_f.bias": np.ones(16, np.int8)}),
        "transformer.ln_f.bias is stored as I8",
    ),
    "heads": (change("n_head", 5), "H must divide D"),
}
LLAMA = {
    "activation": (change("hidden_act", "gelu"), "hidden_act = gelu"),
    "attention bias": (change("attention_bias", True), "attention_bias = True"),
    "mlp bias": (change("mlp_bias", True), "mlp_bias = True"),
    "interleaved": (change("rope_interleaved", True), "rotary positions of neighbouring"),
    "kind": (change("rope_parameters", {"rope_type": "longrope"}), "rope_type = longrope"),
    "old kind": (change("rope_scaling", {"type": "su"}), "rope_type = su"),
    "partial": (change("partial_rotary_factor", 0.5), "partial_rotary_factor = 0.5"),
    "missing": (lambda config, tensors: config.pop("hidden_size"), "has no hidden_size"),
    "q norm": (
        add("model.layers.0.self_attn.q_norm.weight", 4),
        "self_attn.q_norm.weight has none",
    ),
    "window": (
        lambda config, tensors: config.update(layer_types=["sliding_attention"], sliding_window=16),
        "sliding_window = 16, and rows have T = 32",
    ),
}


@pytest.mark.parametrize(
    "family, what", [*(("gpt2", what) for what in REFUSED), *(("llama", what) for what in LLAMA)]
)
def test_what_is_not_computed_here_is_refused_by_name(family, what, tmp_path):
    """rule; values; way out: an option, an architecture, a tensor too many or too few."""
    edit, said = (REFUSED if family == "gpt2" else LLAMA)[what]
    with pytest.raises(TParallelError) as e:
        Folder(write_folder(tmp_path, family, edit=edit)).part("vocab")
    assert said in str(e.value) and ("Use " in str(e.value) or "Set " in str(e.value)), e.value


def test_a_window_that_no_row_is_longer_than_is_no_limit(tmp_path):
    """Qwen2 with sliding_window 12 in its later layers: rows of 12 are read, of 13 refused."""

    def windowed(config, tensors):
        del config["layer_types"]
        config |= {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1}

    path = write_folder(tmp_path, "qwen2-tied", edit=windowed)
    assert Folder(path, T=12).model.T == 12
    with pytest.raises(WeightsError, match=r"sliding_window = 12, and rows have T = 13"):
        Folder(path, T=13)


def test_rotary_positions_are_read_in_the_older_form_and_written_in_it(tmp_path):
    """rope_theta and rope_scaling instead of rope_parameters: the same model."""

    def older(config, tensors):
        said = config.pop("rope_parameters")
        config["rope_theta"] = said.pop("rope_theta")
        config["rope_scaling"] = {"type": said.pop("rope_type"), **said}

    for name in NAMES:
        if not name.startswith("gpt2"):
            new = Folder(write_folder(tmp_path / name, name))
            old = Folder(write_folder(tmp_path / f"{name}-old", name, edit=older))
            assert old.model == new.model
            config = config_json(new.model, "float32")
            assert "rope_parameters" not in config and model_config(config, "") == new.model


def test_a_head_that_is_a_copy_of_the_tied_table_is_accepted(tmp_path):
    """Some folders store the table twice."""

    def twice(config, tensors):
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].copy()

    found = Folder(write_folder(tmp_path, "gpt2", edit=twice)).part("vocab")
    assert np.array_equal(found["w_tok"], stored("gpt2")[1]["transformer.wte.weight"])


def test_what_is_no_folder_of_safetensors_is_refused(tmp_path):
    """No folder, no weights, a pickle, a cut file, an index that leads elsewhere."""
    path = write_folder(tmp_path / "model", "gpt2")
    file = path / "model.safetensors"
    whole = file.read_bytes()

    def refused(*said: str):
        with pytest.raises(WeightsError) as e:
            Folder(path)
        assert all(word in str(e.value) for word in said), e.value

    file.write_bytes(whole[:-100])
    refused("whole safetensors files", "model.safetensors")
    file.unlink()
    refused("must hold model.safetensors")
    (path / "pytorch_model.bin").write_bytes(b"")
    refused("pytorch_model.bin", "a pickle", "save_pretrained")
    (path / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../x.safetensors"}}')
    refused("names '../x.safetensors'")
    (path / "config.json").write_text("[")
    refused("readable JSON")
    (path / "config.json").unlink()
    refused("config.json")
    with pytest.raises(WeightsError, match=r"T = 9, .* has 8"):
        Folder(write_folder(tmp_path / "other", "gpt2"), T=9)


def test_an_export_overwrites_nothing_and_refuses_what_nobody_could_load(tmp_path):
    """A folder with something in it; a model that no architecture of others is."""
    source = Folder(write_folder(tmp_path / "source", "gpt2"))
    before = load_all(tmp_path / "source")
    with pytest.raises(WeightsError, match="makes a new folder"):
        export_source(source, tmp_path / "source")
    assert_equal(load_all(tmp_path / "source"), before)
    with pytest.raises(WeightsError, match=r"of an architecture that others know: .* Hkv = 1"):
        check(ModelConfig(H=4, Hkv=1), tmp_path / "new")
    (tmp_path / "empty").mkdir()
    export_source(source, tmp_path / "empty")
    assert_equal(load_all(tmp_path / "empty"), before)


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
