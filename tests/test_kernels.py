"""Every tuned and every fast kernel is its plain twin: the same numbers, dtype and NaN."""

import json
import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import pytest
from mpitest import mpirun

from tparallel.config import ModelConfig, TrainConfig
from tparallel.kernels import attention, plain
from tparallel.serial.context import context
from tparallel.serial.dropout import NONE, Dropout

VERSIONS = ("tuned", "fast")
needs_numba = pytest.mark.skipif(find_spec("numba") is None, reason="needs the extra fast")
BOUND = {"float64": 2e-14, "float32": 5e-6}  # max |a − b| / max |b|


@pytest.fixture(
    params=[pytest.param(v, marks=needs_numba if v == "fast" else ()) for v in VERSIONS]
)
def kernels(request, monkeypatch):
    """A version of the kernels, to be compared with ``plain``; short parts where it goes by parts,
    so that there are several, and a last one that is shorter."""
    found = import_module(f"tparallel.kernels.{request.param}")
    monkeypatch.setattr(found, "CACHED", 16, raising=False)
    return found


def close(a, b, dtype):
    assert a.dtype == b.dtype == np.dtype(dtype)
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= BOUND[dtype] * np.abs(b).max()


def draw(shape, dtype, scale=1.0, seed=0):
    return (scale * np.random.default_rng([seed, *shape]).normal(size=shape)).astype(dtype)


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 5, 8), (3, 7, 130)])
def test_a_norm_forward_and_both_halves_back(kernels, shape, kind, dtype):
    """Rows of any length; D not a multiple of a vector."""
    x, dy, g, b = (draw(s, dtype, seed=i) for i, s in enumerate((shape, shape, *[shape[-1:]] * 2)))
    p = {"g": g, "b": b} if kind == "layernorm" else {"g": g}
    ours, cache = kernels.norm_forward(x, p, 1e-5)
    theirs, their_cache = plain.norm_forward(x, p, 1e-5)
    close(ours, theirs, dtype)
    dx, wcache = kernels.norm_backward_input(dy, cache, p)
    their_dx, their_wcache = plain.norm_backward_input(dy, their_cache, p)
    assert np.abs(dx - their_dx).max() <= BOUND[dtype] * np.abs(dy).max() * np.abs(cache[1]).max()
    grads = kernels.norm_backward_weight(wcache)
    their_grads = plain.norm_backward_weight(their_wcache)
    assert grads.keys() == their_grads.keys() == p.keys()
    for name, ours in grads.items():
        close(ours, their_grads[name], dtype)


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 30.0])
@pytest.mark.parametrize("gate", [(), (2,)], ids=["gelu", "swiglu"])
def test_activations_and_their_slopes_for_inputs_of_any_size(kernels, gate, scale, dtype):
    """Also far out, where the exponential would overflow; backward is the slope times da."""
    h, b = draw((3, 5, *gate, 37), dtype, scale), draw((*gate, 37), dtype, scale, seed=1)
    for bias in (None, b):
        ours, theirs = kernels.activation_forward(h, bias), plain.activation_forward(h, bias)
        for a, t in zip(ours, theirs):
            close(a, t, dtype)
        da = draw((3, 5, 37), dtype)
        back = plain.activation_backward(da, theirs[1])
        close(kernels.activation_backward(da, ours[1]), back, dtype)


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("start", [0, 3, [[2], [0]]], ids=["from 0", "from 3", "row by row"])
def test_rotary_positions_from_any_start(kernels, start, dtype):
    """q and the keys are turned in place, forward and back; values stay as they are."""
    at = context(ModelConfig(T=16, H=4, Hkv=2, K=6, position="rope"), dtype)
    at = at._replace(start=np.array(start))
    q, kv = draw((2, 9, 4, 6), dtype), draw((2, 9, 2, 2, 6), dtype)
    for turn in ("rope_forward", "rope_backward"):
        ours, theirs = (getattr(k, turn)(q.copy(), kv.copy(), at) for k in (kernels, plain))
        for a, b in zip(ours, theirs):
            close(a, b, dtype)
        assert np.array_equal(ours[1][:, :, 1], kv[:, :, 1])
        assert not np.allclose(ours[1][:, -1, 0], kv[:, -1, 0])


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("scale", [1.0, 40.0])
@pytest.mark.parametrize("V", [1, 5, 259])
def test_cross_entropy_and_its_gradient(kernels, V, scale, dtype):
    """Scores beyond ±80, a vocabulary of one, the last id as a target."""
    logits, targets = draw((2, 3, V), dtype, scale), np.arange(6).reshape(2, 3) % V
    targets[0, 0] = V - 1
    ours, cache = kernels.cross_entropy_forward(logits, targets, 6)
    theirs, their_cache = plain.cross_entropy_forward(logits, targets, 6)
    assert abs(ours - theirs) <= BOUND[dtype] * max(1.0, abs(theirs))
    dlogits = kernels.cross_entropy_backward(cache)
    assert dlogits.dtype == np.dtype(dtype)
    assert np.abs(dlogits - plain.cross_entropy_backward(their_cache)).max() <= BOUND[dtype] / 6


def test_a_row_that_is_named_twice_is_added_twice(kernels):
    """The gradient of an embedding."""
    x, numbers = draw((2, 3, 5), "float64"), np.array([[1, 4, 1], [0, 1, 4]])
    ours, theirs = (k.rows_backward((6, 5), numbers, x) for k in (kernels, plain))
    assert np.array_equal(ours, theirs)
    assert np.allclose(ours[1], x[0, 0] + x[0, 2] + x[1, 1])


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("keep", [True, False], ids=["kept", "made again"])
@pytest.mark.parametrize("scale", [1.0, 9.0])
@pytest.mark.parametrize(
    "B, T, H, Hkv, K",
    [(2, 1, 2, 2, 4), (1, 5, 3, 1, 4), (2, 64, 4, 2, 8), (1, 65, 2, 2, 8), (2, 200, 6, 3, 16)],
)
def test_attention_in_blocks(kernels, B, T, H, Hkv, K, scale, keep, dtype, monkeypatch):
    """T below, at, above and not a multiple of the block; grouped heads; scores beyond ±80."""
    monkeypatch.setattr(attention, "KEEP", T if keep else 0)
    q, dz = draw((B, T, H, K), dtype, scale), draw((B, T, H, K), dtype, seed=1)
    kv = draw((B, T, 2, Hkv, K), dtype, scale, seed=2)
    z, cache = kernels.heads_forward(q, kv)
    their_z, their_cache = plain.heads_forward(q, kv)
    close(z, their_z, dtype)
    assert (cache[2].kept is not None) == keep
    # a saturated softmax has gradients that cancel: measured against the terms, not the rest
    terms = BOUND[dtype] * np.abs(dz).max() * np.abs(kv).max() * max(np.abs(q).max(), 1.0)
    for ours, theirs in zip(
        kernels.heads_backward(dz, cache), plain.heads_backward(dz, their_cache)
    ):
        assert ours.dtype == np.dtype(dtype)
        assert np.abs(ours - theirs).max() <= terms
    numbers = sum(a.size for a in cache[2] if a is not None)
    assert numbers == B * H * kernels.kept_scores(T)


def test_exponentials_of_low_scores_are_no_denormals(kernels):
    """A product that meets one crawls: far below the maximum they are zero or normal numbers."""
    q, kv = draw((1, 70, 2, 8), "float32", 40), draw((1, 70, 2, 2, 8), "float32", 40, seed=1)
    _, (_, _, scores, _) = kernels.heads_forward(q, kv)
    _, (e, *_) = kernels.cross_entropy_forward(q[:, :, 0], np.zeros((1, 70), int), 70)
    for x in (scores.kept, e):
        assert x[x > 0].min() < 1e-34  # they are there
        assert x[x > 0].min() >= np.finfo("float32").tiny


def test_scores_made_again_are_the_same_bits(kernels):
    """Recomputation changes nothing, so a run with it equals a run without."""
    q, kv = draw((2, 70, 4, 8), "float32"), draw((2, 70, 2, 4, 8), "float32", seed=1)
    _, (_, _, scores, _) = kernels.heads_forward(q, kv)
    for ours, again in zip(scores, kernels.scores_again(q, kv, NONE)):
        assert np.array_equal(ours, again)


def test_attention_with_dropout_is_the_plain_text(kernels):
    """The fast kernel leaves dropout to the plain one, forward, again and back."""
    drop = Dropout(rate=0.3).of(1, 2)
    q, kv = draw((1, 9, 2, 4), "float64"), draw((1, 9, 2, 2, 4), "float64", seed=1)
    z, cache = kernels.heads_forward(q, kv, drop)
    their_z, their_cache = plain.heads_forward(q, kv, drop)
    assert np.array_equal(z, their_z)
    assert np.array_equal(kernels.scores_again(q, kv, drop), cache[2])
    for ours, theirs in zip(kernels.heads_backward(z, cache), plain.heads_backward(z, their_cache)):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", BOUND)
def test_adamw_over_ten_steps(kernels, dtype):
    """Weights and both moments, in place."""
    c, ours, theirs = TrainConfig(), *([draw((5, 7), dtype, seed=i) for i in range(3)],) * 2
    ours, theirs = ([a.copy() for a in s] for s in (ours, theirs))
    for moments in (ours, theirs):
        moments[2][...] = np.abs(moments[2])
    for step in range(10):
        g = draw((5, 7), dtype, seed=9 + step)
        for k, (w, m, v) in ((kernels, ours), (plain, theirs)):
            k.adamw_update(w, g, m, v, step, 0.1, 0.01, c, 0.3)
    for a, b in zip(ours, theirs):
        close(a, b, dtype)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_not_finite_stays_so(kernels, bad):
    """Sums may be reordered, scores clamped, but neither may swallow what has gone wrong."""
    x = draw((1, 4, 8), "float32")
    x[0, 2, 3] = bad
    g = np.ones(8, np.float32)
    for p in ({"g": g, "b": g}, {"g": g}):
        lost = ~np.isfinite(plain.norm_forward(x, p, 1e-5)[0])
        assert lost.any() and not np.isfinite(kernels.norm_forward(x, p, 1e-5)[0][lost]).any()
    assert not np.isfinite(kernels.activation_forward(x)[0][0, 2, 3])
    assert not np.isfinite(kernels.activation_forward(np.stack([x, x], 2))[0][0, 2, 3])
    assert not np.isfinite(kernels.cross_entropy_forward(x, np.zeros((1, 4), int), 4)[0])
    q, kv = draw((1, 4, 1, 8), "float32"), draw((1, 4, 2, 1, 8), "float32")
    q[0, 2, 0, 3] = bad
    assert np.isnan(kernels.heads_forward(q, kv)[0][0, 2]).any()
    w, m, v = (np.zeros(8, np.float32) for _ in range(3))
    kernels.adamw_update(w, x[0, 2], m, v, 0, 0.1, 0.0, TrainConfig())
    assert not np.isfinite(w[3])


BITS = """
import hashlib, numpy as np
from tparallel.kernels import fast
q, kv = (np.random.default_rng(n).normal(size=s).astype("f4")
         for n, s in enumerate([(1, 100, 2, 16), (1, 100, 2, 2, 16)]))
z, cache = fast.heads_forward(q, kv)
_, norm = fast.norm_forward(z, {"g": z[0, 0, 0], "b": z[0, 0, 1]}, 1e-5)
arrays = [z, *fast.heads_backward(z, cache), *norm, *fast.activation_forward(z[0])]
print(hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest())
"""


@needs_numba
@pytest.mark.slow
def test_a_kernel_has_the_same_bits_compiled_now_and_loaded_from_the_disk(tmp_path):
    """Otherwise ranks that start while the kernels are being compiled would not agree."""
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "TPARALLEL_KERNELS": "fast"}
    compiled, loaded = (
        subprocess.run([sys.executable, "-c", BITS], env=env, capture_output=True, check=True)
        for _ in range(2)
    )
    assert any(tmp_path.rglob("*.nbi"))
    assert compiled.stdout == loaded.stdout


@pytest.mark.slow  # by default test_compare does it, with whatever kernels are installed
@pytest.mark.mpi
@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_every_layout_equals_serial_with_these_kernels_too(kernels, tmp_path, model):
    """The whole list on four ranks: errors within their bounds, every byte as its closed form."""
    name = kernels.__name__.rpartition(".")[2]
    ended = mpirun(
        4,
        *("-m", "tparallel", "compare", "--quick", "--no-plot", "--out", str(tmp_path)),
        *("--model", model),
        env={"TPARALLEL_KERNELS": name},
        timeout=240,
    )
    assert ended.code == 0, ended.out
    result = json.loads((tmp_path / "compare.json").read_text())
    assert result["run"]["kernels"] == name
    for row in result["rows"]:
        assert row["held_bytes"] == row["held_bytes_predicted"], row["name"]
