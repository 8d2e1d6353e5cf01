"""The proofs of other architectures can fail: each defect turns a named test red."""

import pytest
from mutate import Defect, assert_places, assert_turns_red, copy_of_project

GRADS = "test_serial_golden.py::test_one_batch_gives_what_pytorch_gives"
EQUAL = "test_architectures.py::test_every_method_and_product_equals_serial"
HELD = "test_architectures.py::test_every_rank_holds_and_sends_what_the_closed_forms_say"

DEFECTS = [
    Defect(
        "angles turn the other way",
        "serial/rope.py",
        "a * cos - sign * b * sin, b * cos + sign * a * sin",
        "a * cos + sign * b * sin, b * cos - sign * a * sin",
        "test_serial_layers_by_hand.py::test_rotary_positions_turn_pairs_of_the_two_halves",
    ),
    Defect(
        "backward turns as forward does",
        "serial/rope.py",
        "_turned(dq, dkv, at, -1)",
        "_turned(dq, dkv, at, 1)",
        "test_serial_layers.py::test_a_layers_gradients_are_the_slopes_of_its_output",
    ),
    Defect(
        "neighbours make a pair, not the two halves",
        "serial/rope.py",
        "x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]",
        "x[..., ::2], x[..., 1::2]",
        GRADS,
    ),
    Defect(
        "the norm forgets epsilon",
        "serial/norm.py",
        ".mean(-1, keepdims=True) + eps)",
        ".mean(-1, keepdims=True))",
        GRADS,
    ),
    Defect(
        "the norm's epsilon is always GPT-2's",
        "serial/context.py",
        "Context(norm_eps=c.norm_eps, rope=rope)",
        "Context(rope=rope)",
        GRADS,
    ),
    Defect(
        "RMS norm is centred",
        "serial/norm.py",
        'if "b" in p else x',
        "",
        GRADS,
    ),
    Defect(
        "gate and up are swapped",
        "serial/activation.py",
        "gate, up = h[:, :, 0], h[:, :, 1]",
        "up, gate = h[:, :, 0], h[:, :, 1]",
        GRADS,
    ),
    Defect(
        "frequencies that scaling keeps are divided",
        "serial/rope.py",
        "kept * theta + (1 - kept) * theta / c.scaling.factor",
        "(1 - kept) * theta + kept * theta / c.scaling.factor",
        GRADS,
    ),
    Defect(
        "a text that goes on is turned from position 0 again",
        "serial/rope.py",
        "where = at.positions(q.shape[1])",
        "where = xp.arange(q.shape[1])",
        "test_architectures.py::test_a_text_in_pieces_has_the_logits_of_the_whole",
    ),
    Defect(
        "the mask's diagonal begins in the first corner where keys were kept",
        "serial/heads.py",
        "(S - T if start is None else start) + xp.arange(T)",
        "(0 if start is None else start) + xp.arange(T)",
        "test_architectures.py::test_fewer_queries_than_keys_are_the_last_positions",
    ),
]
SLOW = [
    Defect(
        "under sequence parallelism queries turn from their rank's first token on",
        "serial/context.py",
        "return self.start + xp.arange(T)",
        "return self.start + (self.drop.t + xp.arange(T)) % (self.drop.t + T)",
        EQUAL,
    ),
    Defect(
        "validation runs without the constants of the architecture",
        "train.py",
        "*mine, tokens.size, at=self.at)",
        "*mine, tokens.size, at=self.at._replace(norm_eps=1e-5))",
        EQUAL,
    ),
    Defect(
        "a gated mlp's activations are counted as GELU's",
        "predict/held.py",
        "inner = (kinds(c).inner + 1) * c.F",
        "inner = 2 * c.F",
        HELD,
    ),
    Defect(
        "shifts of norms are sent where there are none",
        "predict/wire.py",
        "[2 * norm * c.D] + p.last * [norm * c.D]",
        "[4 * c.D] + p.last * [2 * c.D]",
        HELD,
    ),
]


@pytest.mark.parametrize(
    "defect",
    [*DEFECTS[:4], *(pytest.param(d, marks=pytest.mark.slow) for d in DEFECTS[4:] + SLOW)],
    ids=lambda d: d.what,
)
def test_a_defect_turns_the_named_test_red(tmp_path, defect):
    """The proof that the proof can fail."""
    assert_turns_red(copy_of_project(tmp_path), defect)


def test_every_defect_has_its_line_and_its_test():
    """Code that moves away under a defect is noticed at once, also for those that run seldom."""
    assert_places(DEFECTS + SLOW)
