"""Who speaks, and whether to a person."""

import pytest

from tparallel.report.console import WIDTH, job_console


@pytest.fixture(autouse=True)
def no_word_about_the_terminal(monkeypatch):
    for name in ("TTY_COMPATIBLE", "COLUMNS", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


def test_rank_0_speaks_and_the_others_are_silent(capsys):
    """The same calls on every rank."""
    for rank in range(3):
        job_console(rank).print(f"rank {rank}")
    assert capsys.readouterr().out == "rank 0\n"


def test_json_leaves_its_stream_to_itself(capsys):
    """What is for a person can go to stderr."""
    job_console(0, stderr=True).print("loud")
    assert capsys.readouterr() == ("", "loud\n")


def test_a_file_is_wide_and_gets_no_control_characters(capsys):
    """100 columns, whatever the terminal was."""
    console = job_console(0)
    assert not console.is_terminal and console.width == WIDTH
    console.print("[bold]loud")
    assert capsys.readouterr().out == "loud\n"


@pytest.mark.parametrize("launcher", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_a_rank_s_pseudo_terminal_is_not_believed(monkeypatch, launcher):
    """Unless it was told that there is a terminal at the other end."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert job_console(0, {}).is_terminal
    assert not job_console(0, {launcher: "4"}).is_terminal
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "70")
    console = job_console(0, {launcher: "4", "TTY_COMPATIBLE": "1"})
    assert console.is_terminal and console.width == 70
