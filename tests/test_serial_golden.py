"""The serial transformer against PyTorch's answers, stored in tests/golden (no PyTorch needed).

scripts/make_golden.py writes the files; ``pytest -m oracle`` compares with PyTorch itself.
"""

from pathlib import Path

import numpy as np
import pytest
from oracle.cases import CLIP, GOLDEN, MICROBATCHES, STEPS
from oracle.compared import BOUND, ours, stored_tree, worst_of

from tparallel.compare.equality import relative_error

FOLDER = Path(__file__).parent / "golden"


@pytest.fixture(scope="module", params=GOLDEN)
def sides(request):
    """(the case, PyTorch's answers, ours from the same weights and batches)"""
    with np.load(FOLDER / f"{request.param}.npz", allow_pickle=False) as file:
        golden = dict(file)
    case = GOLDEN[request.param]
    return case, golden, ours(case, golden)


@pytest.mark.parametrize("what", ["logits", "loss", "grads"])
def test_one_batch_gives_what_pytorch_gives(sides, what):
    """Logits, loss and the gradient of every parameter, from autograd in float64: <= 1e-9."""
    _, golden, found = sides
    error, worst = worst_of(what, found, golden)
    assert error <= BOUND, worst


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_ten_steps_end_where_pytorchs_end(sides, optimizer):
    """Every parameter after 10 steps of 4 micro-batches, clipped, with decay: <= 1e-9."""
    _, golden, found = sides
    error, worst = worst_of(optimizer, found, golden)
    assert error <= BOUND, worst


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("what", ["loss", "norm", "lr"])
def test_each_step_reports_what_pytorch_reports(sides, optimizer, what):
    """Loss and gradient norm before clipping, and the learning rate, of all 10 steps: <= 1e-9."""
    _, golden, found = sides
    assert len(golden[f"{optimizer}.{what}"]) == STEPS
    assert relative_error(found[f"{optimizer}.{what}"], golden[f"{optimizer}.{what}"]) <= BOUND


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_stored_runs_exercise_what_they_are_meant_to(sides, optimizer):
    """Some steps are clipped and some are not; parameters move; every gradient is alive."""
    case, golden, _ = sides
    norms = golden[f"{optimizer}.norm"]
    assert (norms > 1.1 * CLIP).any() and (norms < 0.9 * CLIP).any()
    assert case.train(optimizer).clip == CLIP
    assert MICROBATCHES > 1 and len(golden["tokens"][0]) % MICROBATCHES == 0
    start, end = stored_tree("start", golden), stored_tree(optimizer, golden)
    for layer, p in start.items():
        for name, a in p.items():
            assert relative_error(end[layer][name], a) > 1e6 * BOUND, f"{layer}.{name}"
            assert np.abs(golden[f"grads/{layer}/{name}"]).max() > 1e-3, f"{layer}.{name}"
    assert {0, case.model.V - 1} <= set(golden["targets"][0].flat)


def test_the_golden_files_stay_small():
    """They are committed: together below 300 kB."""
    assert 0 < sum(f.stat().st_size for f in FOLDER.glob("*.npz")) < 300_000
