"""Programs that nobody here wrote: Hugging Face's GPT-2, and PyTorch's ways to split it."""

import numpy as np
import pytest

from tparallel.compare.equality import relative_error
from tparallel.serial.train import grad_norm, loss_and_grads
from tparallel.verify.cases import FIXED, configs
from tparallel.verify.reference import batches, start

pytestmark = pytest.mark.oracle
MODEL = {"L": 2, "D": 24, "H": 3, "F": 40, "T": 8, "V": 37, "tied": True, "global_batch": 4}


@pytest.fixture(scope="module")
def ours():
    """(model, parameters, the batch, loss, gradients), by the serial program in float64."""
    pytest.importorskip("transformers", reason="needs the oracle extra: transformers")
    case = configs(FIXED | MODEL)
    params, (tokens, targets) = start(case.model, case.train), batches(case.model, case.train)[0]
    return case.model, params, tokens, targets, *loss_and_grads(params, tokens, targets)


def test_hugging_faces_gpt2_has_our_loss_and_every_gradient(ours):
    """Random weights, random tokens: loss and gradients tensor by tensor, <= 1e-12."""
    from oracle.gpt2 import loss_of, model_of, theirs

    model, params, tokens, targets, loss, grads = ours
    gpt2 = model_of(model, params)
    found = loss_of(gpt2, tokens, targets)
    found.backward()
    assert relative_error(loss, float(found.detach())) <= 1e-12
    named = dict(gpt2.transformer.named_parameters())
    largest = max(float(np.abs(g).max()) for p in grads.values() for g in p.values())
    for name, g in theirs(grads).items():
        error = np.abs(g - named[name].grad.numpy()).max()
        assert error <= 1e-12 * largest, name


@pytest.mark.parametrize("how", ["ddp", "fsdp2", "pipelining"])
def test_pytorchs_parallelism_has_our_loss_and_norm(ours, how, tmp_path):
    """Two processes over gloo, half of the rows or of the blocks each: the global loss and
    gradient norm."""
    import torch.multiprocessing as mp
    from oracle.gpt2 import loss_and_norm

    model, params, tokens, targets, loss, grads = ours
    context = mp.get_context("spawn")
    answers = context.Queue()
    rest = (2, str(tmp_path / "meet"), how, model, params, tokens, targets, answers)
    ranks = [context.Process(target=loss_and_norm, args=(r, *rest)) for r in range(2)]
    for process in ranks:
        process.start()
    found = answers.get(timeout=120)
    for process in ranks:
        process.join(30)
    assert relative_error(loss, found[0]) <= 1e-12
    assert relative_error(grad_norm(grads), found[1]) <= 1e-12
