"""What is not computed here, or is no whole model, is refused by name before anything is read."""

import numpy as np
import pytest
from published_folders import NAMES, assert_equal, load_all, stored, write_folder

from tparallel.config import ModelConfig
from tparallel.errors import TParallelError, WeightsError
from tparallel.weights import Folder, check, export_source
from tparallel.weights.export import export
from tparallel.weights.settings import config_json, model_config


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


def broken():
    yield "embed", {"w_tok": np.zeros((37, 16)), "w_pos": np.zeros((8, 16))}
    raise OSError("no space left on device")


def test_an_export_overwrites_nothing_and_refuses_what_nobody_could_load(tmp_path):
    """A folder with something in it; a model that no architecture of others is."""
    source = Folder(write_folder(tmp_path / "source", "gpt2"))
    before = load_all(tmp_path / "source")
    with pytest.raises(WeightsError, match="makes a new folder"):
        export_source(source, tmp_path / "source")
    assert_equal(load_all(tmp_path / "source"), before)
    with pytest.raises(WeightsError, match=r"of an architecture that others know: .* Hkv = 1"):
        check(ModelConfig(H=4, Hkv=1), tmp_path / "new")
    (tmp_path / "part-of-mine").mkdir()
    with pytest.raises(WeightsError, match="was not made: no space left"):
        export(source.model, broken(), "float32", tmp_path / "new")
    assert {p.name for p in tmp_path.iterdir()} == {"source", "part-of-mine"}
    (tmp_path / "empty").mkdir()
    export_source(source, tmp_path / "empty")
    assert_equal(load_all(tmp_path / "empty"), before)
