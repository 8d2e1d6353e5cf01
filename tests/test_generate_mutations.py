"""The checks of generation can fail: each defect that is put in is noticed."""

import pytest
from mutate import Defect, assert_turns_red, copy_of_project

TOKENS = "test_generate.py::test_every_layout_finds_the_greedy_tokens_and_keeps_to_the_closed_forms"


SAMPLES = "test_generate.py::test_a_sample_depends_on_seed_and_place_and_on_no_layout"


DEFECTS = [
    Defect(
        "a new token takes the position after its own",
        "generate/generator.py",
        "at._replace(start=past.start, past=past)",
        "at._replace(start=past.start + 1, past=past)",
        TOKENS,
    ),
    Defect(
        "every row sees as many keys as the longest",
        "serial/heads.py",
        "(S - T if start is None else start) + xp.arange(T)",
        "S - T + xp.arange(T)",
        TOKENS,
    ),
    Defect(
        "keys go into the cache of the first row",
        "generate/cache.py",
        "xp.arange(len(kv))[:, None]",
        "0 * xp.arange(len(kv))[:, None]",
        TOKENS,
    ),
    Defect(
        "the padding's logits are taken for a short row's",
        "generate/generator.py",
        "x = x[xp.arange(len(x)), last][:, None]",
        "x = x[:, -1:]",
        TOKENS,
    ),
    Defect(
        "a rank's candidates are numbered from zero",
        "generate/sample.py",
        "first = part(V, tp.rank, tp.size).start",
        "first = 0",
        TOKENS,
    ),
    Defect(
        "noise is drawn by the place in this rank's part of the vocabulary",
        "generate/sample.py",
        "score += gumbel(keys, ids)",
        "score += gumbel(keys, ids - first)",
        SAMPLES,
    ),
    Defect(
        "noise is numbered by the row of the micro-batch",
        "generate/generator.py",
        "for n, at in zip(rows.numbers, rows.lengths)",
        "for n, at in enumerate(rows.lengths)",
        SAMPLES,
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("defect", DEFECTS, ids=lambda d: d.what)
def test_a_defect_turns_the_named_test_red(defect, tmp_path):
    """The proof that the proof can fail."""
    assert_turns_red(copy_of_project(tmp_path), defect)
