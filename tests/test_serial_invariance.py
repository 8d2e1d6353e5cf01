"""What must change nothing: micro-batches, the order of sequences, neighbours, later tokens."""

import numpy as np
import pytest

from tparallel.compare.equality import relative_error, worst_error
from tparallel.config import ModelConfig, TrainConfig
from tparallel.serial.heads import heads_forward
from tparallel.serial.loss import cross_entropy_backward, cross_entropy_forward
from tparallel.serial.model import model_forward
from tparallel.serial.train import initial_params, loss_and_grads, train_step

BOUND = 1e-12
G = 8  # sequences in the global batch


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def model(request):
    return ModelConfig(L=2, D=12, H=3, T=7, V=19, F=10, tied=request.param)


@pytest.fixture
def params(model):
    return initial_params(model, TrainConfig(dtype="float64", init="random", seed=11))


@pytest.fixture
def batch(model):
    rng = np.random.default_rng(12)
    return rng.integers(0, model.V, (G, model.T)), rng.integers(0, model.V, (G, model.T))


@pytest.mark.parametrize("microbatches", [2, 4, 8])
def test_micro_batches_change_neither_loss_nor_gradients(params, batch, microbatches):
    """The sum over M micro-batches is the whole batch's: sum, never average."""
    whole_loss, whole = loss_and_grads(params, *batch)
    loss, grads = loss_and_grads(params, *batch, microbatches)
    assert relative_error(loss, whole_loss) < BOUND
    error, worst = worst_error(grads, whole)
    assert error < BOUND, worst


def test_micro_batches_change_nothing_after_ten_clipped_steps(model, batch):
    """The same parameters after 10 steps of SGD, whether the batch is cut into 1 or 4."""
    c = TrainConfig(
        steps=10, optimizer="sgd", lr=0.3, warmup=2, clip=0.5, dtype="float64", init="random"
    )
    ends = []
    for microbatches in (1, 4):
        params = initial_params(model, c)
        for step in range(c.steps):
            train_step(params, (), *batch, step, c, microbatches)
        ends.append(params)
    error, worst = worst_error(*ends)
    assert error < BOUND, worst


def test_the_order_of_sequences_changes_neither_loss_nor_gradients(params, batch):
    """A batch is a set: reversed, and cut into micro-batches of other members, it is the same."""
    tokens, targets = batch
    whole_loss, whole = loss_and_grads(params, tokens, targets)
    loss, grads = loss_and_grads(params, tokens[::-1], targets[::-1], microbatches=4)
    assert relative_error(loss, whole_loss) < BOUND
    error, worst = worst_error(grads, whole)
    assert error < BOUND, worst


def test_a_sequences_logits_do_not_depend_on_its_neighbours(params, batch):
    """Alone, or in a batch with any other sequences: the same logits."""
    tokens, _ = batch
    together, _ = model_forward(tokens, params)
    for i in range(G):
        alone, _ = model_forward(tokens[i : i + 1], params)
        assert relative_error(alone[0], together[i]) < BOUND


def test_attention_subtracts_each_rows_own_maximum():
    """Scores near 1000 in one sequence leave a quiet neighbour's attention as it is alone."""
    rng = np.random.default_rng(13)
    quiet = rng.normal(size=(1, 5, 2, 4)), rng.normal(size=(1, 5, 2, 2, 4))
    loud = 40 * rng.normal(size=(1, 5, 2, 4)), 40 * rng.normal(size=(1, 5, 2, 2, 4))
    alone, _ = heads_forward(*quiet)
    together, _ = heads_forward(*(np.concatenate(both) for both in zip(loud, quiet)))
    assert np.isfinite(together).all()
    assert relative_error(together[1:], alone) < BOUND


def test_the_loss_subtracts_each_rows_own_maximum():
    """Logits near ±1000 in one row leave the loss and gradient of another row as they are."""
    quiet = np.array([[[0.0, 1.0, 2.0]]])
    alone, cache_alone = cross_entropy_forward(quiet, np.array([[0]]), count=1)
    for top in (1000.0, -1000.0):
        both = np.concatenate([quiet, np.full((1, 1, 3), top)])
        loss, cache = cross_entropy_forward(both, np.array([[0], [1]]), count=1)
        assert relative_error(loss, alone + np.log(3)) < BOUND
        dlogits = cross_entropy_backward(cache)
        assert relative_error(dlogits[:1], cross_entropy_backward(cache_alone)) < BOUND


@pytest.mark.parametrize("t", range(1, 7))
def test_a_later_token_never_changes_earlier_logits(params, batch, model, t):
    """Other tokens from position t on: logits before t keep their bits, those from t on change."""
    tokens, _ = batch
    changed = tokens.copy()
    changed[:, t:] = (changed[:, t:] + 1) % model.V
    before, _ = model_forward(tokens, params)
    after, _ = model_forward(changed, params)
    assert np.array_equal(before[:, :t], after[:, :t])
    assert (np.abs(before[:, t:] - after[:, t:]).max((0, 2)) > 1e-3).all()


def test_a_shorter_sequence_is_the_beginning_of_a_longer_one(params, batch):
    """T below the model's T: the same logits, and no gradient for positions never seen."""
    tokens, targets = batch
    long, _ = model_forward(tokens, params)
    short, _ = model_forward(tokens[:, :4], params)
    assert relative_error(short, long[:, :4]) < BOUND
    _, grads = loss_and_grads(params, tokens[:, :4], targets[:, :4])
    assert not grads["embed"]["w_pos"][4:].any()
    assert grads["embed"]["w_pos"][:4].all()
