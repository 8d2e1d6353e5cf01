"""Break one line of a copy of the project and see which tests notice."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


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
    """pytest, on the copy: its directory comes first on the path."""
    command = [sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    env = os.environ | {"PYTHONPATH": str(project)}
    return subprocess.run(command, cwd=project, env=env, text=True, capture_output=True)
