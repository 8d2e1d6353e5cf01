"""The proofs can fail: each defect, put into a copy of the code, turns a named test red."""

import pytest
from mutate import Defect, assert_turns_red, copy_of_project, pytest_in

FD = "test_serial_gradients.py::test_every_gradient_is_the_slope_of_the_loss"
GOLDEN_GRADS = "test_serial_golden.py::test_one_batch_gives_what_pytorch_gives"
GOLDEN_STEPS = "test_serial_golden.py::test_ten_steps_end_where_pytorchs_end"
IDENTITY = "test_serial_layers_by_hand.py::test_a_block_whose_branches_are_silent_is_the_identity"


DEFECTS = [
    Defect(
        "the residual gradient of the mlp branch is dropped",
        "serial/block.py",
        "    dx += dy  # again the residuals",
        "    # again the residuals",
        IDENTITY,
    ),
    Defect(
        "the residual gradient of the attention branch is dropped",
        "serial/block.py",
        "    dx += dy  # and here",
        "    # and here",
        IDENTITY,
    ),
    Defect(
        "the last id of the vocabulary is scored as the one before it",
        "serial/loss.py",
        "[every_row(targets)].reshape(top.shape)",
        "[every_row(targets.clip(max=logits.shape[-1] - 2))].reshape(top.shape)",
        "test_serial_layers_by_hand.py::test_every_id_of_the_vocabulary_is_scored_right",
    ),
    Defect(
        "scores are divided by the root of D, not of K",
        "serial/heads.py",
        "    s *= 1 / sqrt(K)\n",
        "    s *= 1 / sqrt(K * q.shape[1] * q.shape[2])\n",
        "test_serial_layers_by_hand.py::test_attention_is_the_causal_softmax_of_q_k_over_root_k",
    ),
    Defect(
        "the norm's gradient forgets the mean",
        "serial/norm.py",
        "return centred(dc, p), (dy, xhat, [*p])",
        "return dc, (dy, xhat, [*p])",
        FD,
    ),
    Defect(
        "attention leaves its output bias out",
        "serial/attention.py",
        'p["w_out"], p.get("b_out"), contract=2)',
        'p["w_out"], contract=2)',
        GOLDEN_GRADS,
    ),
    Defect(
        "gradients are never clipped",
        "serial/train.py",
        "clip_factor(norm, c), learning_rate",
        "1.0, learning_rate",
        GOLDEN_STEPS,
    ),
    Defect(
        "biases and norms decay too",
        "serial/train.py",
        "c.weight_decay if decayed(name) else 0.0",
        "c.weight_decay",
        GOLDEN_STEPS,
    ),
    Defect(
        "the bias correction is a step late",
        "serial/adamw.py",
        "    mhat = m / (1 - c.beta1 ** (step + 1))\n",
        "    mhat = m / (1 - c.beta1 ** (step + 2))\n",
        GOLDEN_STEPS,
    ),
    Defect(
        "each micro-batch divides by its own tokens",
        "serial/train.py",
        "count=targets.size)",
        "count=targets[i : i + rows].size)",
        "test_serial_invariance.py::test_micro_batches_change_neither_loss_nor_gradients",
    ),
    Defect(
        "softmax subtracts the maximum of the whole batch",
        "serial/heads.py",
        "    s -= s.max(-1, keepdims=True)\n",
        "    s -= s.max()\n",
        "test_serial_invariance.py::test_attention_subtracts_each_rows_own_maximum",
    ),
    Defect(
        "the key gradient is half of what it is",
        "serial/heads.py",
        "    dk[...] = (ds",
        "    dk[...] = 0.5 * (ds",
        FD,
    ),
    Defect(
        "a token sees the one after it",
        "serial/heads.py",
        "xp.arange(S) <= last",
        "xp.arange(S) <= 1 + last",
        "test_serial_invariance.py::test_a_later_token_never_changes_earlier_logits",
    ),
    Defect(
        "tensors of equal name in different layers start alike",
        "serial/parameters.py",
        'f"{layer}.{name}".encode()',
        "name.encode()",
        "test_serial_optimizer.py::test_no_two_tensors_start_alike",
    ),
    Defect(
        "a NumPy scalar turns float32 into float64",
        "serial/activation.py",
        "C = sqrt(2 / pi)",
        "import numpy\nC = numpy.sqrt(2 / pi)",
        "test_serial_layers.py::test_a_layer_returns_the_dtype_that_it_was_given",
    ),
]


@pytest.fixture
def project(tmp_path):
    return copy_of_project(tmp_path)


def test_without_a_defect_the_copy_is_green(project):
    """The control: the same tests in the same place pass, so that red means the defect."""
    ended = pytest_in(project, *sorted({f"tests/{d.red}" for d in DEFECTS}))
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda d: d.what)
def test_a_defect_turns_the_named_test_red(project, defect):
    """The proof that the proof can fail."""
    assert_turns_red(project, defect)
