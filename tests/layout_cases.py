"""Full -> shard -> run -> unshard -> how far from serial: the same few lines for every layout."""

from functools import cache
from typing import NamedTuple

import numpy as np

from tparallel.compare.equality import relative_error, worst_error
from tparallel.config import Layout, ModelConfig, TrainConfig
from tparallel.serial.context import context
from tparallel.serial.dropout import Dropout
from tparallel.serial.loss import cross_entropy_forward
from tparallel.serial.model import model_forward
from tparallel.serial.train import grad_norm, initial_params, loss_and_grads, train_step, zeros_like
from tparallel.tensor_parallel.split import is_split
from tparallel.train import Trainer
from tparallel.zero.norm import totals

# 23 is a prime: no tp divides the vocabulary, and no dp divides a layer's flat vector evenly.
MODEL = ModelConfig(L=4, D=12, H=4, T=6, V=23, F=20)
# Clipping is active at this start: the norm before it is some 3, and lr is large enough to move.
TRAIN = TrainConfig(
    steps=3, global_batch=8, dtype="float64", init="random", clip=0.5, lr=0.05, warmup=2
)


def batch(model: ModelConfig, train: TrainConfig, seed: int = 0):
    """Tokens and targets (G, T); the first and the last id of the vocabulary are among both."""
    rng = np.random.default_rng([7, seed])
    tokens, targets = rng.integers(0, model.V, (2, train.global_batch, model.T))
    for ids in (tokens, targets):
        ids[0, :2] = ids[-1, -2:] = 0, model.V - 1
    return tokens, targets


class Run(NamedTuple):
    """What one training of ``train.steps`` steps gives; trees are whole."""

    losses: list
    norms: list
    grads: dict  # of the first step, before clipping
    params: dict
    moments: tuple
    held_out: float  # loss of another batch after training


class Errors(NamedTuple):
    """Of a layout against serial; of trees, with the name of the worst tensor."""

    loss: float
    norm: float
    grads: tuple[float, str]
    params: tuple[float, str]
    moments: tuple[float, str]
    held_out: float


@cache
def serial(model: ModelConfig, train: TrainConfig, microbatches: int) -> Run:
    """serial/train.py from start to end."""
    params = initial_params(model, train)
    tokens, targets = batch(model, train)
    at = context(model, train.dtype)
    first = at._replace(drop=Dropout(train.dropout).of(train.seed, 0))
    _, grads = loss_and_grads(params, tokens, targets, microbatches, first)
    moments = (zeros_like(params), zeros_like(params)) if train.optimizer == "adamw" else ()
    steps = [
        train_step(params, moments, *batch(model, train, k), k, train, microbatches, at)
        for k in range(train.steps)
    ]
    losses, norms = map(list, zip(*steps))
    assert grad_norm(grads) == norms[0]
    return Run(losses, norms, grads, params, moments, _held_out(model, train, params))


def _held_out(model, train, params) -> float:
    tokens, targets = batch(model, train, 99)
    logits, _ = model_forward(tokens, params, context(model, train.dtype))
    return float(cross_entropy_forward(logits, targets, targets.size)[0])


def parallel(model: ModelConfig, train: TrainConfig, layout: Layout, comm) -> Run | None:
    """The same training on this layout; whole on rank 0, None elsewhere."""
    trainer = Trainer(model, train, layout, comm)
    share = trainer.forward_backward(*batch(model, train))
    grads = trainer.grads()
    steps = [totals(trainer.store, share)]
    trainer.store.update(0, steps[0][1])
    steps += [trainer.step(k, *batch(model, train, k)) for k in range(1, train.steps)]
    params, moments = trainer.params(), trainer.moments()
    held_out = trainer.evaluate(*batch(model, train, 99))
    assert len(set(comm.allgather((held_out, *steps)))) == 1  # every rank knows the same numbers
    assert_copies_agree(trainer)
    trainer.close()
    if comm.rank > 0:
        return None
    losses, norms = map(list, zip(*steps))
    return Run(losses, norms, grads, params, moments, held_out)


def assert_copies_agree(trainer: Trainer) -> None:
    """What several ranks hold, over dp, over tp or at both ends of the pipeline, is the same."""
    mine = {
        (unit, name, trainer.mesh.coords.tp if is_split(name) else 0): a.tobytes()
        for unit, p in trainer.store.whole("params", trainer.store.params).items()
        for name, a in p.items()
    }
    copies: dict = {}
    for held in trainer.mesh.comm.allgather(mine):
        for key, bits in held.items():
            assert copies.setdefault(key, bits) == bits, f"{key}: copies differ"


def errors(model: ModelConfig, train: TrainConfig, layout: Layout, comm) -> Errors:
    """The layout's run beside serial's, the same on every rank."""
    ours, found = parallel(model, train, layout, comm), None
    if ours is not None:
        true = serial(model, train, layout.microbatches)
        found = Errors(
            relative_error(ours.losses, true.losses),
            relative_error(ours.norms, true.norms),
            worst_error(ours.grads, true.grads),
            worst_error(ours.params, true.params),
            max((worst_error(a, b) for a, b in zip(ours.moments, true.moments)), default=(0.0, "")),
            relative_error(ours.held_out, true.held_out),
        )
    return comm.bcast(found)


def assert_equal(e: Errors, optimizer: str, where: str) -> None:
    """In float64: 1e-12 for what one step computes and for SGD; 1e-10 for what AdamW divides."""
    after_steps = 1e-10 if optimizer == "adamw" else 1e-12
    assert e.loss <= 1e-12 and e.held_out <= after_steps, f"{where}: {e}"
    assert e.grads[0] <= 1e-12, f"{where}: {e}"
    assert e.norm <= 1e-12, f"{where}: {e}"
    assert e.params[0] <= after_steps and e.moments[0] <= after_steps, f"{where}: {e}"


def same_bits(tree: dict, other: dict) -> bool:
    """Are all tensors of two trees equal to the last bit?"""
    return tree.keys() == other.keys() and all(
        tree[unit].keys() == other[unit].keys()
        and all(np.array_equal(tree[unit][name], other[unit][name]) for name in tree[unit])
        for unit in tree
    )
