"""Every gradient of the model against finite differences: mathematics, not a second program."""

import numpy as np
import pytest
from oracle.differences import directional_error, entries

from tparallel.compare.equality import worst_error
from tparallel.config import ModelConfig, TrainConfig, preset
from tparallel.serial.context import context
from tparallel.serial.loss import cross_entropy_forward
from tparallel.serial.model import model_forward
from tparallel.serial.parameters import shapes
from tparallel.serial.train import initial_params, loss_and_grads

BOUND = 1e-6
SMALL = 45  # entries: tensors up to this size are checked one by one

YARN = "yarn:factor=4,original=3,fast=0.6,slow=0.1"
# (model, sequences B, tokens T of each)
MODELS = {
    "untied": (ModelConfig(L=2, D=12, H=3, T=5, V=11, F=20), 3, 5),
    "tied": (ModelConfig(L=2, D=10, H=2, T=7, V=13, F=9, tied=True), 2, 7),
    "short": (ModelConfig(L=1, D=9, H=3, T=8, V=17, F=7), 3, 5),
    "tied short": (ModelConfig(L=3, D=6, H=1, T=9, V=5, F=11, tied=True), 1, 4),
    "heads of size 1": (ModelConfig(L=1, D=5, H=5, T=3, V=7, F=3), 5, 3),
    "llama": (preset("llama", L=2, D=8, H=4, Hkv=2, T=5, V=11, F=6), 2, 5),
    "qwen2": (
        preset("qwen2", L=1, D=6, H=3, Hkv=1, K=4, T=9, V=7, F=5, tied=True, rope_scaling=YARN),
        2,
        4,
    ),
    "gated, all biases": (ModelConfig(L=1, D=6, H=2, K=2, T=4, V=5, F=4, mlp="swiglu"), 2, 4),
    "one token": (ModelConfig(L=1, D=7, H=1, T=2, V=3, F=4, tied=True), 1, 1),
}
TENSORS = [
    pytest.param(case, layer, name, id=f"{case}: {layer}.{name}")
    for case, (model, _, _) in MODELS.items()
    for layer, p in shapes(model).items()
    for name in p
]


@pytest.fixture(scope="module")
def solved():
    """Parameters, batch and hand-written gradients of each model, made once."""
    made = {}
    for case, (model, B, T) in MODELS.items():
        params = initial_params(model, TrainConfig(dtype="float64", init="random", seed=3))
        rng = np.random.default_rng(len(case))
        batch = rng.integers(0, model.V, (B, T)), rng.integers(0, model.V, (B, T))
        at = context(model, "float64")
        made[case] = params, batch, at, loss_and_grads(params, *batch, at=at)[1]
    return made


@pytest.mark.parametrize("case, layer, name", TENSORS)
def test_every_gradient_is_the_slope_of_the_loss(solved, case, layer, name):
    """Along random directions of each tensor, and at each entry of a small one, < 1e-6."""
    params, batch, at, grads = solved[case]
    w, dw = params[layer][name], grads[layer][name]

    def loss():
        tokens, targets = batch
        logits, _ = model_forward(tokens, params, at)
        return cross_entropy_forward(logits, targets, count=targets.size)[0]

    assert directional_error(loss, w, dw, np.random.default_rng(0)) < BOUND
    if w.size <= SMALL:
        error, worst = worst_error({layer: {name: dw}}, {layer: {name: entries(loss, w)}})
        assert error < BOUND, worst
