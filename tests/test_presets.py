"""Architectures by name, and the text that says how rotary positions are scaled."""

import json

import pytest

from tparallel.commands.flags import add_flags, model_config
from tparallel.config import PRESETS, ModelConfig, as_dict, preset
from tparallel.config.scaling import RopeScaling
from tparallel.errors import ConfigError


def parsed(*arguments):
    import argparse

    parser = argparse.ArgumentParser()
    add_flags(parser, ModelConfig)
    return model_config(parser.parse_args(arguments))


def test_the_default_model_is_as_before():
    """No flag, no name: GPT-2's architecture in small."""
    assert parsed() == preset("gpt2") == ModelConfig()
    assert ModelConfig().K == 32 and ModelConfig(H=8).K == 16 and ModelConfig(H=3, K=5).K == 5


def test_a_name_gives_a_model_and_flags_replace_single_values():
    """Published values; what is given beside the name wins."""
    small = parsed("--model", "smollm2-135m", "--L", "2", "--T", "64")
    assert small == preset("smollm2-135m", L=2, T=64)
    assert (small.D, small.H, small.Hkv, small.F, small.K) == (576, 9, 3, 1536, 64)
    assert (small.norm, small.position, small.mlp, small.bias) == (
        "rmsnorm",
        "rope",
        "swiglu",
        "none",
    )
    own = parsed("--rope-scaling", "linear:factor=2", "--position", "rope")
    assert own.scaling == RopeScaling("linear", factor=2.0)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_model_that_survives_json(name):
    """As plain values and back."""
    model = preset(name)
    assert ModelConfig(**json.loads(json.dumps(as_dict(model)))) == model


def test_a_name_that_is_none_is_refused_with_those_that_are():
    with pytest.raises(ConfigError, match=r"model = gpt5. Use one of gpt2, llama, qwen2, gpt2-124"):
        preset("gpt5")


@pytest.mark.parametrize(
    "text",
    [
        "none",
        "linear:factor=4",
        "dynamic:factor=2,original=64",
        "llama3:factor=32,low=1,high=4,original=8192",
        "yarn:factor=4,original=32768,fast=32,slow=1",
        "yarn:factor=4,original=32768,fast=16,slow=2,attention=1.25",
        "linear:factor=1.0001234",
        "dynamic:factor=2,original=1048576",
    ],
)
def test_a_scaling_is_read_from_text_and_written_back(text):
    assert str(RopeScaling.parse(text)) == text


@pytest.mark.parametrize(
    "text, said",
    [
        ("linear", "linear scaling needs factor: rope_scaling = linear. Use linear:factor=8."),
        ("llama3:factor=8", "llama3 scaling needs original"),
        ("linear:factor=2,low=1", "linear scaling has the numbers factor: 'low=1' is not one"),
        ("linear:factor=two", "the numbers of a scaling must be positive: factor = two"),
        ("yarn:factor=inf,original=8", "must be positive: factor = inf"),
        ("none:factor=2", "none scaling has the numbers"),
        ("ntk", "rope_scaling is not one that is known: rope_scaling = ntk"),
    ],
)
def test_a_scaling_that_cannot_be_read_is_refused_with_one_that_can(text, said):
    """The advice is accepted."""
    with pytest.raises(ConfigError) as error:
        RopeScaling.parse(text)
    assert said in str(error.value)
    for advised in str(error.value).rpartition(" Use ")[2].rstrip(".").split("; "):
        RopeScaling.parse(advised)
