"""Serial's side of a case, and its comparison with the twin's answers."""

import numpy as np

from tparallel.compare.equality import relative_error, worst_error
from tparallel.serial.adamw import learning_rate
from tparallel.serial.context import context
from tparallel.serial.model import model_forward
from tparallel.serial.train import loss_and_grads, train_step, zeros_like

from .cases import MICROBATCHES, STEPS, Case

BOUND = 1e-9


def ours(case: Case, answers: dict) -> dict:
    """What serial makes of the weights and batches in ``answers``, under the same names."""
    start = stored_tree("start", answers)
    tokens, targets = answers["tokens"], answers["targets"]
    at = context(case.model, "float64")
    loss, grads = loss_and_grads(start, tokens[0], targets[0], at=at)
    out: dict = {"logits": model_forward(tokens[0], start, at)[0], "loss": loss, "grads": grads}
    for optimizer in ("sgd", "adamw"):
        params, moments = copied(start), (zeros_like(start), zeros_like(start))
        c = case.train(optimizer)
        log = [
            train_step(params, moments, tokens[k], targets[k], k, c, MICROBATCHES, at)
            for k in range(STEPS)
        ]
        out[optimizer] = params
        out[f"{optimizer}.loss"], out[f"{optimizer}.norm"] = np.array(log).T
        out[f"{optimizer}.lr"] = np.array([learning_rate(k, c) for k in range(STEPS)])
    return out


def worst_of(what: str, found: dict, answers: dict) -> tuple[float, str]:
    """The error of an array, or the worst of a tree of arrays, and its name."""
    if isinstance(found[what], dict):
        return worst_error(found[what], stored_tree(what, answers))
    return relative_error(found[what], answers[what]), what


def stored_tree(kind: str, answers: dict) -> dict:
    """{layer: {name: array}} of the entries ``kind/layer/name``."""
    out: dict = {}
    for key, a in answers.items():
        if key.startswith(kind + "/"):
            _, layer, name = key.split("/")
            out.setdefault(layer, {})[name] = a
    return out


def copied(tree: dict) -> dict:
    return {layer: {name: a.copy() for name, a in p.items()} for layer, p in tree.items()}
