"""The serial transformer against PyTorch, run live: needs the extra ``oracle``."""

from pathlib import Path

import numpy as np
import pytest
from oracle.cases import CLIP, GOLDEN, LIVE
from oracle.compared import BOUND, ours, worst_of

from tparallel.compare.equality import relative_error

pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module", params=LIVE)
def live(request):
    """(the case's name, PyTorch's answers now, ours)"""
    from oracle.answers import answers

    now = answers(LIVE[request.param])
    return request.param, now, ours(LIVE[request.param], now)


@pytest.mark.parametrize(
    "what",
    ["logits", "loss", "grads"]
    + [f"{o}{part}" for o in ("sgd", "adamw") for part in ("", ".loss", ".norm", ".lr")],
)
def test_serial_gives_what_pytorch_gives(live, what):
    """Logits, loss, gradients; parameters, losses, norms and rates of 10 steps: <= 1e-9."""
    _, now, found = live
    error, worst = worst_of(what, found, now)
    assert error <= BOUND, worst


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_live_runs_are_clipped(live, optimizer):
    """Clipping that never happens would prove nothing."""
    assert (live[1][f"{optimizer}.norm"] > 1.1 * CLIP).any()


@pytest.mark.parametrize("name", GOLDEN)
def test_the_golden_files_are_what_pytorch_answers_today(name):
    """Committed answers equal fresh ones but for rounding, name by name: nobody edited either."""
    from oracle.answers import answers

    with np.load(Path(__file__).parent / "golden" / f"{name}.npz", allow_pickle=False) as file:
        stored = dict(file)
    fresh = answers(GOLDEN[name])
    assert stored.keys() == fresh.keys()
    for key, a in stored.items():
        # AdamW divides the rounding in a key bias's gradient by that rounding's size (+ 1e-8).
        assert relative_error(a, fresh[key]) < 1e-10, key
