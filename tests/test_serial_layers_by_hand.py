"""Small layers against sums written out entry by entry: defects that relative tests cannot see.

A wrong scale or a wrong index that forward and backward share has right finite differences, and
a parallel program that copies it agrees with it.
"""

from cmath import exp as cexp
from math import exp, log, sqrt, tanh
from math import pi as PI

import numpy as np
import pytest

from tparallel.compare.equality import relative_error
from tparallel.config import ModelConfig
from tparallel.serial.activation import gelu_forward, swiglu_forward
from tparallel.serial.block import block_backward, block_forward
from tparallel.serial.context import context
from tparallel.serial.embedding import embed_backward, embed_forward
from tparallel.serial.heads import heads_forward
from tparallel.serial.loss import cross_entropy_backward, cross_entropy_forward
from tparallel.serial.norm import norm_forward
from tparallel.serial.parameters import initial
from tparallel.serial.rope import rope_forward

BOUND = 1e-12


def test_every_id_of_the_vocabulary_is_scored_right():
    """loss = log Σ e^logit − logit_target for each target, the first and the last id included."""
    V = 7
    row = np.random.default_rng(0).normal(size=V)
    for target in range(V):
        loss, cache = cross_entropy_forward(row[None, None], np.array([[target]]), count=1)
        assert relative_error(loss, log(sum(map(exp, row))) - row[target]) < BOUND
        dlogits = np.array([exp(x) / sum(map(exp, row)) for x in row])
        dlogits[target] -= 1
        assert relative_error(cross_entropy_backward(cache)[0, 0], dlogits) < BOUND


def test_the_loss_divides_by_the_count_that_it_is_given():
    """Tokens of the global batch, not of these arrays: 3 tokens of 12 weigh a quarter."""
    logits = np.random.default_rng(1).normal(size=(1, 3, 5))
    targets = np.array([[4, 0, 4]])
    alone, cache_alone = cross_entropy_forward(logits, targets, count=3)
    part, cache = cross_entropy_forward(logits, targets, count=12)
    assert relative_error(4 * part, alone) < BOUND
    dlogits = cross_entropy_backward(cache)
    assert relative_error(4 * dlogits, cross_entropy_backward(cache_alone)) < BOUND


@pytest.mark.parametrize(
    "B, T, H, Hkv, K", [(2, 5, 3, 3, 4), (1, 1, 2, 2, 3), (1, 6, 1, 1, 7), (2, 4, 6, 2, 3)]
)
def test_attention_is_the_causal_softmax_of_q_k_over_root_k(B, T, H, Hkv, K):
    """With q and k of unit variance, where √D in place of √K is an error of 0.1 and more."""
    rng = np.random.default_rng(2)
    q, kv = rng.normal(size=(B, T, H, K)), rng.normal(size=(B, T, 2, Hkv, K))
    found, _ = heads_forward(q, kv)
    assert relative_error(found, written_out(q, kv, sqrt(K))) < BOUND
    if H > 1 and T > 1:
        assert relative_error(found, written_out(q, kv, sqrt(H * K))) > 0.1


def written_out(queries, kv, scale):
    """z[b, t, h] = Σ_{s <= t} softmax_s(q[t]·k[s] / scale) v[s], with no array arithmetic; query
    heads 0 to H/Hkv − 1 read key/value head 0, and so on."""
    B, T, H, K = queries.shape
    z = np.zeros((B, T, H, K))
    for b, t, h in np.ndindex(B, T, H):
        g = h * kv.shape[3] // H
        q, k, v = queries[b, t, h], kv[b, :, 0, g], kv[b, :, 1, g]
        weight = [exp(sum(q[i] * k[s, i] for i in range(K)) / scale) for s in range(t + 1)]
        for s in range(t + 1):
            z[b, t, h] += weight[s] / sum(weight) * v[s]
    return z


def test_layer_norm_and_gelu_are_their_definitions():
    """One row, one number at a time, from the formulas in the docstrings."""
    x, g, b = np.random.default_rng(3).normal(size=(3, 6))
    mean = sum(x) / 6
    var = sum((v - mean) ** 2 for v in x) / 6
    expected = [g[i] * (x[i] - mean) / sqrt(var + 1e-5) + b[i] for i in range(6)]
    assert (
        relative_error(norm_forward(x[None, None], {"g": g, "b": b}, 1e-5)[0][0, 0], expected)
        < BOUND
    )
    expected = [v / 2 * (1 + tanh(sqrt(2 / PI) * (v + 0.044715 * v**3))) for v in x]
    assert relative_error(gelu_forward(x)[0], expected) < BOUND


def test_rms_norm_and_swiglu_are_their_definitions():
    """One row, one number at a time; ε weighs as much as the row itself here."""
    x, g, up = np.random.default_rng(3).normal(size=(3, 6))
    eps = sum(v * v for v in x) / 6
    y, _ = norm_forward(x[None, None], {"g": g}, eps)
    assert relative_error(y[0, 0], [g[i] * x[i] / sqrt(2 * eps) for i in range(6)]) < BOUND
    a, _ = swiglu_forward(np.stack([x, up])[None, None])
    expected = [v / (1 + exp(-v)) * u for v, u in zip(x, up)]
    assert relative_error(a[0, 0], expected) < BOUND


def test_rotary_positions_turn_pairs_of_the_two_halves():
    """Number i of a head and number i + K/2 are one complex number: times e^(i t θ_i), and the
    values are left alone.  A product of q and k sees only the distance of their positions."""
    c = ModelConfig(T=9, H=2, Hkv=1, K=6, position="rope", rope_theta=50.0)
    rng, at = np.random.default_rng(4), context(c, "float64")
    q, kv = rng.normal(size=(1, 5, 2, 6)), rng.normal(size=(1, 5, 2, 1, 6))
    scores = {}
    for start in (0, 4):
        here = at._replace(start=start)
        turned_q, turned_kv = rope_forward(q.copy(), kv.copy(), here)
        assert np.array_equal(turned_kv[:, :, 1], kv[:, :, 1])
        for t, i in np.ndindex(5, 3):
            turn = cexp(1j * (start + t) * 50.0 ** (-2 * i / 6))
            for whole, turned in ((q[0, t, 1], turned_q[0, t, 1]), (kv, turned_kv)):
                whole, turned = whole.reshape(-1, 6), turned.reshape(-1, 6)
                n = 2 * t if len(whole) > 1 else 0  # the key of token t
                z = complex(whole[n, i], whole[n, i + 3]) * turn
                assert relative_error(turned[n, [i, i + 3]], [z.real, z.imag]) < BOUND
        scores[start] = turned_q[0, :, 0] @ turned_kv[0, :, 0, 0].T
    assert relative_error(scores[4], scores[0]) < BOUND


def a_block(*silent):
    """Random parameters, with w_out and b_out of the named branches set to zero."""
    c = ModelConfig(L=1, D=8, H=2, T=4, V=5, F=6)
    p = initial(c, "block.0", seed=5, dtype="float64", style="random")
    for branch in silent:
        p[f"{branch}.w_out"][...] = 0
        p[f"{branch}.b_out"][...] = 0
    x, dy = np.random.default_rng(6).normal(size=(2, 2, 4, 8))
    return x, dy, p


def test_a_block_whose_branches_are_silent_is_the_identity():
    """Both residual paths alone: y = x and dx = dy, bit for bit."""
    x, dy, p = a_block("attn", "mlp")
    y, cache = block_forward(x, p)
    dx, _ = block_backward(dy, cache, p)
    assert np.array_equal(y, x)
    assert np.array_equal(dx, dy)


@pytest.mark.parametrize("silent", ["attn", "mlp"])
def test_each_residual_carries_the_gradient_past_its_own_branch(silent):
    """One branch silent: the gradient into its norm is zero, and dy still arrives below it."""
    x, dy, p = a_block(silent)
    _, cache = block_forward(x, p)
    dx, grads = block_backward(dy, cache, p)
    other, norm = ("mlp", "norm1") if silent == "attn" else ("attn", "norm2")
    assert not grads[f"{norm}.g"].any()
    assert grads[f"{other}.b_out"].all()
    assert relative_error(grads[f"{other}.b_out"], dy.sum((0, 1))) < BOUND
    assert relative_error(dx, dy) > 1e-3


def test_a_token_that_occurs_twice_collects_both_gradients():
    """dW_tok sums over every place where the token stands; absent tokens get zero."""
    p = {"w_tok": np.zeros((6, 3)), "w_pos": np.zeros((4, 3))}
    tokens = np.array([[5, 1, 5], [5, 0, 1]])
    dx = np.random.default_rng(7).normal(size=(2, 3, 3))
    _, cache = embed_forward(tokens, p)
    _, grads = embed_backward(dx, cache, p)
    assert relative_error(grads["w_tok"][5], dx[0, 0] + dx[0, 2] + dx[1, 0]) < BOUND
    assert relative_error(grads["w_tok"][1], dx[0, 1] + dx[1, 2]) < BOUND
    assert not grads["w_tok"][2:5].any()
    assert relative_error(grads["w_pos"][:3], dx.sum(0)) < BOUND
    assert not grads["w_pos"][3].any()
