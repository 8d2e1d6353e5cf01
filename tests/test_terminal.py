"""Who speaks, and whether to a person."""

import pytest

from tparallel.report.terminal import WIDTH, terminal


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    for name in ("OMPI_COMM_WORLD_RANK", "TTY_COMPATIBLE", "COLUMNS", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


def test_rank_0_speaks_and_the_others_are_silent(capsys):
    """The same calls on every rank."""
    for rank in range(3):
        terminal(rank).print(f"rank {rank}")
    assert capsys.readouterr().out == "rank 0\n"


def test_a_file_is_wide_and_gets_no_control_characters(capsys):
    """100 columns, whatever the terminal was."""
    console = terminal(0)
    assert not console.is_terminal and console.width == WIDTH
    console.print("[bold]loud")
    assert capsys.readouterr().out == "loud\n"


def test_open_mpi_s_pseudo_terminal_is_not_believed(monkeypatch):
    """Unless the launcher has said that there is a terminal at the other end."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert terminal(0).is_terminal
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    assert not terminal(0).is_terminal
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "70")
    assert terminal(0).is_terminal and terminal(0).width == 70
