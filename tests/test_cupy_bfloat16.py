"""Activations in bfloat16, as on a GPU: every layout on the stand-in, against float64.

What is rounded: each array that a layer writes, by at most u = 2⁻⁸ of each number.  The longest way
through a block writes 11 arrays forward (norm, q, z, y, residual; norm, h, a, y, residual; k beside
q), and 11 back.  Errors of different arrays are independent, so that they add up as the root of
their number: in norm, a gradient is wrong by about u √(22 L + 4), and by less than twice that.
"""

import os
import pickle
from math import sqrt

import pytest
from layout_cases import batch
from mpitest import mpi, mpirun
from standin_cupy import CUPY
from test_cupy_kernels import compiled
from test_cupy_layouts import MODEL, TRAIN, on_part

from tparallel import predict
from tparallel.compare.equality import worst_error
from tparallel.compare.measure import measure
from tparallel.config import Layout, ModelConfig, replace
from tparallel.errors import ConfigError
from tparallel.layouts import for_ranks
from tparallel.serial.context import context
from tparallel.serial.dropout import Dropout
from tparallel.serial.train import initial_params, loss_and_grads
from tparallel.train import Trainer
from tparallel.zero.precision import storage_dtype

pytest.importorskip("ml_dtypes")
HALF = replace(TRAIN, dtype="bfloat16", activations="bfloat16", init="random")
U = 2.0**-8
FAST = {**CUPY, "TPARALLEL_KERNELS": "fast"}
LLAMA = ModelConfig(  # its heads and texts are long enough for cuDNN
    L=2, D=16, H=4, Hkv=2, K=8, T=64, V=23,
    norm="rmsnorm", position="rope", mlp="swiglu", bias="none",
)  # fmt: skip


def largest(model) -> float:
    """Every array's rounding error at its largest, in different directions."""
    return U * sqrt(22 * model.L + 4)


MODELS = {"gpt2": MODEL, "llama": LLAMA}
OPTIONS = (  # of training, and a layout
    ({}, "tp=2,sp=regather,recompute=full"),
    ({}, "tp=2,recompute=selective"),
    ({"dropout": 0.2}, "tp=2,dp=2,zero=2"),
    ({}, "pp=2,microbatches=4,schedule=zb-h1"),
)


@pytest.fixture(scope="session")
def halves(tmp_path_factory):
    """NumPy's loss and gradients in float64, at parameters that bfloat16 can hold."""
    found = {
        (name, dropout): in_float64(model, dropout)
        for name, model in MODELS.items()
        for dropout in (0.0, 0.2)
    }
    path = tmp_path_factory.mktemp("numpy") / "halves"
    path.write_bytes(pickle.dumps(found))
    return path


def in_float64(model, dropout: float):
    params = initial_params(model, replace(HALF, dtype="float32", activations=""))
    params = {
        layer: {n: a.astype(storage_dtype("bfloat16")).astype("f8") for n, a in p.items()}
        for layer, p in params.items()
    }
    drop = Dropout(dropout).of(HALF.seed, 0)
    at = context(model, "float64")._replace(drop=drop)
    return loss_and_grads(params, *batch(model, HALF), at=at)


def agrees_with_float64(comm, model, train, layout, truth) -> None:
    """The loss, all gradients together, and each alone; held and sent bytes by the closed forms."""
    trainer = Trainer(model, train, layout, comm)
    assert trainer.at.rope is None or trainer.at.rope.cos.dtype == "float32"  # angles need digits
    loss, _ = trainer.store.totals(trainer.forward_backward(*batch(model, HALF)))
    grads = trainer.grads()
    trainer.close()
    if grads is not None:
        pairs = [(g.astype("f8"), truth[1][u][n]) for u, p in grads.items() for n, g in p.items()]
        error = norm(g - t for g, t in pairs) / norm(t for _, t in pairs)
        assert abs(loss / truth[0] - 1) < U, (layout.name, loss, truth[0])
        assert largest(model) / 20 < error < largest(model), (layout.name, error)
        assert worst_error(grads, truth[1])[0] < 3 * largest(model), (layout.name, error)
    ranks = measure(model, train, layout, comm, lambda step: batch(model, HALF, step))
    if ranks:
        held, wire = predict.held(model, train, layout), predict.wire(model, train, layout)
        assert {k: [own.held[k] for own in ranks] for k in held} == held, layout.name
        assert {a: [own.wire[a] for own in ranks] for a in wire} == wire, layout.name


def norm(arrays) -> float:
    return sqrt(sum((a**2).sum() for a in arrays))


@compiled
@mpi(4, timeout=90, env=FAST, fresh=True)
def test_every_layout_s_gradients_are_float64_s_but_for_rounding(comm, halves):
    """GPT-2's layers in every layout, with attention in blocks; Llama's, with cuDNN's attention,
    where they differ; bytes to the byte."""
    truth = pickle.loads(halves.read_bytes())
    os.environ["TPARALLEL_TRANSPORT"] = "direct"
    for layout in for_ranks(comm.size, MODEL, HALF):
        for name, model in MODELS.items():
            if name == "gpt2" or (layout.tp in (2, 4) and not layout.zero):
                asked = model, HALF, layout, truth[name, 0.0]
                on_part(comm, layout, lambda part, asked=asked: agrees_with_float64(part, *asked))


@compiled
@mpi(4, timeout=60, env=FAST, fresh=True)
def test_every_option_s_too(comm, halves):
    """Inputs gathered again, recomputation, dropout, backward in two halves."""
    truth = pickle.loads(halves.read_bytes())
    for options, text in OPTIONS:
        train, layout = replace(HALF, **options), Layout.parse(text)
        asked = MODEL, train, layout, truth["gpt2", train.dropout]
        on_part(comm, layout, lambda part, asked=asked: agrees_with_float64(part, *asked))


def test_activations_in_half_need_parameters_in_half_and_a_gpus_kernels():
    """Refused before anything is computed: the rule, the values, the way out."""
    with pytest.raises(ConfigError, match="Use dtype bfloat16, or leave"):
        replace(HALF, dtype="float32")
    flags = ["--dtype", "bfloat16", "--activations", "bfloat16"]
    job = mpirun(1, "-m", "tparallel", "train", *flags, env={"TPARALLEL_BACKEND": "numpy"})
    assert job.code == 2 and job.out.count("ConfigError") == 1, job.out
    assert "the backend is numpy, the kernels are plain. Use TPARALLEL_BACKEND=cupy" in job.out
