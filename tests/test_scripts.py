"""scripts/compare and scripts/test: make the environment once, repair it, and say what is wrong.

Python and pip are stood in for by a shell script that writes down what it is asked for, so that
these tests install nothing; the one marked slow builds the real environment in an empty clone.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

STAND_IN = """#!/bin/sh
printf '%s\\n' "$*" >>"$CALLS"
case "$*" in
    *version_info*) exit "${OLD:-0}" ;;
    *"import ensurepip"*) exit "${NO_ENSUREPIP:-0}" ;;
    *"import virtualenv"*) exit 1 ;;
    "-m venv "*) for last; do :; done; mkdir -p "$last/bin"; cp "$0" "$last/bin/python" ;;
    "-m pip install"*) echo "pip's own words"; exit "${PIP_FAILS:-0}" ;;
    "-m tparallel "* | "-m pytest"*) echo "ran: $0 $*" ;;
esac
"""


class Clone:
    """A copy of what the scripts need, with the stand-in as the only Python on PATH."""

    def __init__(self, folder: Path) -> None:
        self.root, self.calls, bin = folder / "clone", folder / "calls", folder / "bin"
        for name in ("scripts/compare", "scripts/test", "scripts/setup.sh", "setup.cfg"):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.root / name)
        shutil.copy(ROOT / "pyproject.toml", self.root)
        bin.mkdir()
        (bin / "python3").write_text(STAND_IN)
        (bin / "python3").chmod(0o755)
        for tool in ("sh", "cat", "cp", "cksum", "dirname", "grep", "head", "mkdir", "mktemp", "mv",
                     "rm", "sort", "tail", "tr"):  # fmt: skip
            (bin / tool).symlink_to(shutil.which(tool))
        self.env = {"PATH": str(bin), "CALLS": str(self.calls)}

    def run(self, script: str, *argv: str, **env: str) -> subprocess.CompletedProcess:
        self.calls.write_text("")
        line = [str(self.root / "scripts" / script), *argv]
        options = {"capture_output": True, "text": True, "check": False}
        return subprocess.run(line, env={**self.env, **env}, **options)

    def installs(self) -> list[str]:
        lines = self.calls.read_text().splitlines()
        return [line.split("[")[1].rstrip("]") for line in lines if "pip install" in line]


@pytest.fixture
def clone(tmp_path) -> Clone:
    return Clone(tmp_path)


def test_the_first_run_installs_and_the_second_starts_at_once(clone):
    """One line of what happens; then none, and neither pip nor venv is called."""
    first = clone.run("compare", "--steps", "3")
    assert first.returncode == 0 and clone.installs() == ["mpi,plot,fast"]
    assert first.stdout.endswith(".venv/bin/python -m tparallel compare --steps 3\n")
    assert "installing" in first.stderr and "pip's own words" not in first.stdout + first.stderr
    second = clone.run("compare")
    assert second.returncode == 0 and second.stderr == "" and clone.installs() == []
    assert len(clone.calls.read_text().splitlines()) == 1  # the comparison itself


def test_a_changed_setup_cfg_installs_again(clone):
    """A new requirement is not found out by an ImportError."""
    clone.run("compare")
    with open(clone.root / "setup.cfg", "a") as file:
        file.write("# changed\n")
    clone.run("compare")
    assert clone.installs() == ["mpi,plot,fast"]


def test_a_test_environment_serves_the_comparison_too(clone):
    """The other way round the test extra is added."""
    clone.run("compare")
    clone.run("test")
    assert clone.installs() == ["mpi,plot,fast,half,hf,test"]
    clone.run("compare")
    assert clone.installs() == []


def test_an_installation_that_failed_is_told_and_repaired(clone):
    """Non-zero exit with pip's whole output; the next run tries again."""
    failed = clone.run("compare", PIP_FAILS="1")
    assert failed.returncode != 0 and "pip's own words" in failed.stderr
    assert "ran:" not in failed.stdout
    assert clone.run("compare").returncode == 0 and clone.installs() == ["mpi,plot,fast"]


def test_an_environment_whose_python_is_gone_is_made_again(clone):
    """After an upgrade of the system's Python the link points nowhere."""
    clone.run("compare")
    (clone.root / ".venv/bin/python").unlink()
    assert clone.run("compare").returncode == 0
    assert clone.installs() == ["mpi,plot,fast"]


@pytest.mark.parametrize("mpi, extra", [("openmpi", "openmpi"), ("intel", "intel")])
def test_each_mpi_has_an_environment_of_its_own(clone, mpi, extra):
    """Chosen by an option or by a variable."""
    by_option = clone.run("test", "--mpi", mpi, "-k", "zero")
    assert f".venv-{mpi}/bin/python -m pytest -k zero" in by_option.stdout
    assert clone.installs() == [f"{extra},plot,fast,half,hf,test"]
    assert f".venv-{mpi}/" in clone.run("test", TPARALLEL_MPI=mpi).stdout
    assert not clone.installs() and not (clone.root / ".venv").exists()


def test_the_system_s_mpi_is_not_installed(clone):
    """No wheel is asked for."""
    assert ".venv-system/" in clone.run("compare", TPARALLEL_MPI="system").stdout
    assert clone.installs() == ["plot,fast"]


@pytest.mark.parametrize("env, shown", [
    ({"OLD": "1"}, "Python 3.10 or newer is needed"),
    ({"NO_ENSUREPIP": "1"}, "python3-venv"),
    ({"TPARALLEL_MPI": "lam"}, "must be mpich, openmpi, intel or system"),
])  # fmt: skip
def test_what_is_missing_is_said_with_the_way_out(clone, env, shown):
    """An old Python, one without ensurepip, an unknown MPI."""
    ended = clone.run("compare", **env)
    assert ended.returncode != 0 and shown in ended.stderr and "ran:" not in ended.stdout


@pytest.mark.slow
def test_an_empty_clone_becomes_a_run_with_one_command(tmp_path):
    """The real thing, with the network: clone, scripts/compare, a second run."""
    subprocess.run(["git", "clone", "-q", ROOT, tmp_path / "clone"], check=True)
    line = [tmp_path / "clone/scripts/compare", "--steps", "2", "--out", tmp_path / "out"]
    env = {**os.environ, "TPARALLEL_MPI": "mpich"}
    for _ in range(2):
        subprocess.run(line, env=env, check=True, timeout=600)
    assert (tmp_path / "out/compare.json").exists()
