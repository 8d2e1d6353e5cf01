"""Programs that nobody here wrote: Hugging Face's Llama and Qwen2, with every scaling of angles."""

import numpy as np
import pytest

from tparallel.compare.equality import relative_error, worst_error
from tparallel.config import TrainConfig, preset
from tparallel.serial.context import context
from tparallel.serial.model import model_forward
from tparallel.serial.train import initial_params, loss_and_grads

pytestmark = pytest.mark.oracle
SIZES = {"L": 2, "D": 24, "H": 6, "Hkv": 3, "K": 8, "T": 40, "V": 37, "F": 28, "rope_theta": 100.0}
SCALINGS = {
    "none": "none",
    "linear": "linear:factor=3",
    "dynamic": "dynamic:factor=3,original=16",
    "llama3": "llama3:factor=4,low=1,high=4,original=20",
    "yarn": "yarn:factor=4,original=20,fast=3,slow=0.3",
    "yarn with its own temperature": "yarn:factor=4,original=20,fast=3,slow=0.3,attention=1.3",
}
MODELS = {
    **{f"llama, {s}": preset("llama", **SIZES, rope_scaling=text) for s, text in SCALINGS.items()},
    "llama, tied": preset("llama", **SIZES, tied=True, norm_eps=0.3),
    "qwen2": preset("qwen2", **{**SIZES, "K": 4}, tied=True),
    "qwen2, yarn": preset("qwen2", **{**SIZES, "K": 4}, rope_scaling=SCALINGS["yarn"]),
}


@pytest.mark.parametrize("name", MODELS)
def test_hugging_face_has_our_logits_loss_and_every_gradient(name):
    """Random weights, random tokens, tensor by tensor: <= 1e-9 in float64."""
    pytest.importorskip("transformers", reason="needs the oracle extra: transformers")
    import torch
    from oracle.llama import Twin, read

    model, rng = MODELS[name], np.random.default_rng(3)
    params = initial_params(model, TrainConfig(dtype="float64", init="random", seed=2))
    tokens, targets = rng.integers(0, model.V, (2, 3, model.T))
    at = context(model, "float64")
    loss, grads = loss_and_grads(params, tokens, targets, at=at)
    twin = Twin(model, params)
    logits = twin(torch.tensor(tokens))
    assert logits.dtype == torch.float64
    found = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(targets).flatten())
    found.backward()
    ours, _ = model_forward(tokens, params, at)
    assert relative_error(ours, logits.detach().numpy()) <= 1e-9
    assert relative_error(loss, found.item()) <= 1e-9
    error, worst = worst_error(grads, read(twin, params, lambda p: p.grad))
    assert error <= 1e-9, worst


def test_a_scaling_changes_the_answer():
    """Else the comparison would say nothing about it: logits move by more than a percent."""
    params = initial_params(
        MODELS["llama, none"], TrainConfig(dtype="float64", init="random", seed=2)
    )
    tokens = np.random.default_rng(3).integers(0, 37, (1, 40))
    logits = {
        s: model_forward(tokens, params, context(MODELS[f"llama, {s}"], "float64"))[0]
        for s in SCALINGS
    }
    for s in SCALINGS:
        for other in SCALINGS:
            assert s == other or relative_error(logits[s], logits[other]) > 1e-2, (s, other)
