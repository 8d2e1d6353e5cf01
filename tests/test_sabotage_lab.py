"""Every known bug, put into the running program, is caught by the check that should catch it."""

import inspect
import re
from pathlib import Path

import pytest
from mpitest import mpi

from tparallel.commands.sabotage import described
from tparallel.errors import ConfigError
from tparallel.sabotage.bugs import BUGS, Bug, chosen
from tparallel.sabotage.curve import moved
from tparallel.sabotage.examine import examine
from tparallel.sabotage.patch import Changed, Edit, applied, find
from tparallel.verify.cases import case_of
from tparallel.verify.pool import Pool


@mpi(4, timeout=120)
def test_every_saboteur_is_caught_and_nothing_is_red_without_one(comm):
    """The named check goes red for each; for the same layouts without a bug, none does."""
    with Pool(comm) as pool:
        if not pool.leads:
            return
        layouts = {str(bug.layout): bug.layout for bug in BUGS.values()}
        for layout in layouts.values():
            healthy = Bug("none", "", (), layout, "", ())
            answers = pool.run(case_of(layout).layout.ranks, examine, healthy)
            assert len(answers) >= 8
            assert not [(layout, check, a) for check, a in answers.items() if not a.holds]
        missed = {}
        for bug in BUGS.values():
            answers = pool.run(case_of(bug.layout).layout.ranks, examine, bug)
            if answers[bug.caught_by].holds:
                missed[bug.name] = answers
        assert not missed


@mpi(2)
@pytest.mark.parametrize("name", ["norm-per-stage", "bias-times-tp", "zero2-last-reduce"])
def test_a_broken_program_still_learns(comm, name):
    """Its curve moves, and it falls: the loss alone would not have told."""
    found = moved(comm, BUGS[name], 20)
    assert 0 < found.most < 0.5
    assert found.broken < 5.3


def test_there_are_sixteen_bugs_with_reports():
    """Each has a name, a layout that is legal, and at least one link."""
    assert len(BUGS) >= 16
    for bug in BUGS.values():
        assert bug.reports
        assert case_of(bug.layout)


@pytest.mark.parametrize("name", BUGS)
def test_the_lines_that_a_bug_changes_are_there(name):
    """Code that has changed under a bug is noticed here, not by a bug that does nothing."""
    with applied(BUGS[name].edits):
        pass


@pytest.mark.parametrize("name", BUGS)
def test_no_module_knows_its_saboteur(name):
    """No branch for a bug in what it breaks: neither its name nor this package is mentioned."""
    for edit in BUGS[name].edits:
        source = inspect.getsource(inspect.getmodule(find(edit.where)))
        assert name not in source
        assert "sabotage" not in source


def test_the_readme_shows_the_table_of_the_page():
    """Row by row, without the links; every bug has its row."""
    root = Path(__file__).resolve().parent.parent
    page, readme = (root / p for p in ("tutorials/pages/sabotage.md", "README.md"))
    rows = [re.sub(r" \[\d+\]\([^)]*\)", "", row) for row in page.read_text().splitlines()]
    assert "\n".join(rows) in readme.read_text()
    assert {re.match(r"\| `([\w-]+)`", row)[1] for row in rows if "`" in row} == BUGS.keys()


def test_an_edit_reaches_every_importer_and_is_undone():
    """A table that holds the function, and a module that imported it, run the edited lines."""
    import numpy as np

    from tparallel.serial.activation import gelu_forward
    from tparallel.tensor_parallel import whole_data

    edit = Edit("serial.activation:gelu_forward", "return 0.5 * h * (1 + t)", "return h")
    x = np.array([1.0, -2.0])
    before = gelu_forward(x)[0]
    with applied([edit]):
        assert (gelu_forward(x)[0] == x).all()
        assert whole_data.gelu_forward is gelu_forward
    assert (gelu_forward(x)[0] == before).all()


def test_it_is_undone_when_the_block_fails():
    """Also if only the second of two edits cannot be made."""
    good = Edit("serial.linear:biased", "y += b", "y -= b")
    bad = Edit("serial.activation:gelu_forward", "no such text", "")
    from tparallel.serial.linear import biased

    with pytest.raises(Changed, match="holds 0 times"), applied([good, bad]):
        pass
    assert biased(3.0, 2.0) == 5.0


def test_an_unknown_bug_is_refused_with_the_names():
    with pytest.raises(ConfigError, match=r"no such bug: typo\. Use one of residual-gradient"):
        chosen(["typo"])


def test_a_bug_is_described_by_its_lines_and_links():
    """``--list`` shows what is exchanged."""
    bug = BUGS["norm-counts-replicas"]
    text = "\n".join(described(bug))
    for edit in bug.edits:
        assert f"- {edit.old.strip()}" in text and f"+ {edit.new.strip()}" in text
    assert "https://github.com/NVIDIA-NeMo/RL/pull/3788" in text
