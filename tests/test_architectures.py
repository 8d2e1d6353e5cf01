"""Llama's and Qwen2's architectures, split in every way: equal to serial, and to the byte."""

import numpy as np
import pytest
from layout_cases import assert_equal, batch, errors, same_bits
from mpitest import mpi

from tparallel import predict
from tparallel.compare.equality import relative_error
from tparallel.compare.measure import measure
from tparallel.config import Layout, TrainConfig, preset, replace
from tparallel.serial.context import Context, context
from tparallel.serial.heads import heads_forward
from tparallel.serial.model import model_forward
from tparallel.serial.parameters import count, shapes
from tparallel.serial.train import initial_params, loss_and_grads
from tparallel.train import Trainer
from tparallel.verify import definition
from tparallel.verify.cases import configs

# 23 is a prime; heads are wider than D/H; Hkv below tp, at it and above it.
SIZES = {"L": 4, "D": 12, "H": 4, "K": 6, "T": 8, "V": 23, "F": 20}
LLAMA = preset("llama", **SIZES, Hkv=2, tied=True, norm_eps=0.1)
QWEN2 = preset("qwen2", **SIZES, Hkv=1, rope_scaling="llama3:factor=8,original=30")
MODELS = {"llama": LLAMA, "qwen2": QWEN2}
TRAIN = TrainConfig(
    **{"steps": 2, "global_batch": 8, "dtype": "float64", "init": "random"},
    **{"clip": 0.5, "lr": 0.05, "warmup": 1, "dropout": 0.1},
)
LAYOUTS = (
    Layout(tp=4),
    Layout(tp=2, dp=2, zero=1, sp="keep", recompute="full"),
    Layout(tp=4, sp="regather", recompute="selective"),
    Layout(pp=4, microbatches=4),
    Layout(pp=2, dp=2, zero=2, schedule="zb-h1", microbatches=2),
    Layout(dp=4, zero=3, microbatches=2),
    Layout(tp=2, pp=2, schedule="zb-v", sp="keep", microbatches=4),
    Layout(tp=2, dp=2, zero=3, bucket_bytes=5_000),
)


@mpi(4, timeout=120)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "qwen2")) for name in MODELS]
)
def test_every_method_and_product_equals_serial(comm, name):
    """Loss, norm, gradients, parameters and moments after two AdamW steps with dropout and
    clipping; tied with a rotary embedding that has no parameters of its own, and untied."""
    for layout in LAYOUTS:
        assert_equal(errors(MODELS[name], TRAIN, layout, comm), "adamw", layout.name)


@mpi(4, timeout=120)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "qwen2")) for name in MODELS]
)
def test_every_rank_holds_and_sends_what_the_closed_forms_say(comm, name):
    """States, peak activations, the gathered layer and the wire bytes of each axis."""
    model, train = MODELS[name], replace(TRAIN, dtype="float32", dropout=0.0)
    more = Layout(dp=4, zero=3, quantise="both"), Layout(dp=4, zero=3, shard_group=2)
    for layout in (*LAYOUTS, *more):
        ranks = measure(model, train, layout, comm, lambda step: batch(model, train, step))
        if ranks:
            held, wire = predict.held(model, train, layout), predict.wire(model, train, layout)
            assert {k: [own.held[k] for own in ranks] for k in held} == held, layout.name
            assert {a: [own.wire[a] for own in ranks] for a in wire} == wire, layout.name


@mpi(1, 2)
def test_recomputed_gradients_have_the_bits_of_kept_ones(comm):
    """Alone and under tp = 2: the angles of backward are those of forward."""
    found = []
    for how in ("none", "selective", "full"):
        trainer = Trainer(LLAMA, TRAIN, Layout(tp=comm.size, recompute=how), comm)
        trainer.forward_backward(*batch(LLAMA, TRAIN))
        found.append(trainer.grads())
        trainer.close()
    assert comm.rank > 0 or (same_bits(found[0], found[1]) and same_bits(found[0], found[2]))


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_the_loss_is_the_definition_s(name):
    """One token and one head at a time, turned as complex numbers: a second text."""
    model = preset(name, L=2, D=8, H=4, Hkv=2, K=6, T=7, V=11, F=5, norm_eps=0.2, rope_theta=30.0)
    params = initial_params(model, TRAIN)
    tokens, targets = batch(model, replace(TRAIN, global_batch=2))
    loss, _ = loss_and_grads(params, tokens, targets, at=context(model, "float64"))
    assert relative_error(loss, definition.loss(model, params, tokens, targets)) < 1e-12


class Past:
    """The keys and values of every layer, one text after the other."""

    def __init__(self):
        self.kv = {}

    def of(self, layer):
        return Here(self, layer)


class Here:
    def __init__(self, past, layer):
        self.past, self.layer = past, layer

    def of(self, layer):
        return Here(self.past, layer)

    def extend(self, kv):
        before = self.past.kv.get(self.layer)
        whole = kv if before is None else np.concatenate([before, kv], 1)
        self.past.kv[self.layer] = whole
        return whole


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_text_in_pieces_has_the_logits_of_the_whole(name):
    """The context may say where a text goes on, and hold the keys and values of what was before."""
    model = preset(name, L=2, D=8, H=4, Hkv=2, T=9, V=11, F=6)
    params, at = initial_params(model, TRAIN), context(model, "float64")
    tokens = np.random.default_rng(0).integers(0, 11, (3, 9))
    whole, _ = model_forward(tokens, params, at)
    past, start, found = Past(), 0, []
    for T in (4, 1, 1, 3):
        here = at._replace(start=start, past=past)
        found.append(model_forward(tokens[:, start : start + T], params, here)[0])
        start += T
    assert relative_error(np.concatenate(found, 1), whole) < 1e-12


def test_rows_may_start_at_different_positions():
    """Row b of the input is the text from start[b] on: keys and queries turn from there."""
    model = preset("llama", T=16, D=8, H=2)
    at = context(model, "float64")
    starts = np.array([[3], [0], [7]])
    assert np.array_equal(at._replace(start=starts).positions(4), starts + np.arange(4))
    assert np.array_equal(Context().positions(4), np.arange(4))


def test_fewer_queries_than_keys_are_the_last_positions():
    """A causal mask whose diagonal ends in the last corner, with grouped heads."""
    rng = np.random.default_rng(1)
    q, kv = rng.normal(size=(2, 7, 4, 6)), rng.normal(size=(2, 7, 2, 2, 6))
    whole, _ = heads_forward(q, kv)
    for T in (1, 3, 7):
        assert relative_error(heads_forward(q[:, -T:], kv)[0], whole[:, -T:]) < 1e-12


PUBLISHED = {  # parameters, as the models' pages state them
    "gpt2-124m": 124_439_808,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "tinyllama-1.1b": 1_100_048_384,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_its_published_number_of_parameters(name):
    assert count(preset(name)) == PUBLISHED[name]


def test_the_parameters_follow_from_the_architecture():
    """What each kind of architecture has, by name."""
    block = shapes(QWEN2)["block.0"]
    biases = {name for name in block if ".b" in name}
    assert biases == {"attn.b_q", "attn.b_kv"} and block["mlp.w_in"] == (12, 2, 20)
    assert "w_pos" not in shapes(QWEN2)["embed"] and shapes(LLAMA)["embed"] == {}
    assert not [name for name in shapes(LLAMA)["block.0"] if ".b" in name]
    assert shapes(LLAMA)["head"] == {"norm.g": (12,)}


def test_any_mixture_of_kinds_is_a_model():
    """Each field alone: the rest stays GPT-2's."""
    for change in ({"norm": "rmsnorm"}, {"position": "rope"}, {"mlp": "swiglu"}, {"bias": "none"}):
        case = configs({"D": 8, "H": 2, "F": 6, "V": 7, "T": 4, "L": 1, **change})
        at, params = context(case.model, "float64"), initial_params(case.model, TRAIN)
        tokens, targets = batch(case.model, TRAIN)
        truth = definition.loss(case.model, params, tokens, targets)
        assert relative_error(loss_and_grads(params, tokens, targets, at=at)[0], truth) < 1e-12


def test_a_model_without_its_context_is_not_run():
    """Rotary parameters with a context that knows no angles: never a model without positions."""
    with pytest.raises(KeyError, match="w_pos"):
        model_forward(np.zeros((1, 2), int), initial_params(LLAMA, TRAIN))
