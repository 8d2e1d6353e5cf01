"""Break one line of a copy of the project and see which tests notice."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Defect(NamedTuple):
    """One line that somebody could get wrong, and the test that must notice."""

    what: str
    file: str  # in tparallel/
    old: str
    new: str
    red: str  # the test that must fail


def copy_of_project(folder: Path) -> Path:
    """The package and its tests, apart from the originals."""
    for part in ("tparallel", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.cfg", folder)
    return folder


def replace(project: Path, file: str, old: str, new: str) -> None:
    """Puts ``new`` where ``old`` is, which must be in exactly one place."""
    path = project / "tparallel" / file
    text = path.read_text()
    assert text.count(old) == 1, f"{file} holds {text.count(old)} times:\n{old}"
    path.write_text(text.replace(old, new))


def pytest_in(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """pytest, on the copy: its directory comes first on the path.  Plugins take longer to load
    than most of these tests to run, and none is needed."""
    command = [sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    env = os.environ | {"PYTHONPATH": str(project), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(command, cwd=project, env=env, text=True, capture_output=True)


def assert_turns_red(project: Path, defect: Defect) -> None:
    """An assertion of that very test fails: exit code 1, and no error while collecting."""
    replace(project, defect.file, defect.old, defect.new)
    ended = pytest_in(project, "-x", f"tests/{defect.red}")
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert f"FAILED tests/{defect.red}" in ended.stdout
    said = r"^(E|   ) +(assert|AssertionError)"  # by pytest, or by a rank
    assert re.search(said, ended.stdout, re.MULTILINE), ended.stdout


def assert_places(defects: list[Defect]) -> None:
    """Every line that is replaced is there once, and so is every test that must notice."""
    for defect in defects:
        file, name = defect.red.split("::")
        assert (ROOT / "tparallel" / defect.file).read_text().count(defect.old) == 1, defect.what
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), defect.what
