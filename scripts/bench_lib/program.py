"""Programs that take turns, each in a process of its own: ours in several versions, PyTorch.

What a version is made of is chosen when the package is imported, hence the processes.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from tparallel import mkl

VERSIONS = {  # of ours: kernels, products
    "fast": ("fast", "array"),
    "fast mkl": ("fast", "mkl"),
    "tuned": ("tuned", "array"),
}


def versions() -> list[str]:
    """Those that can run here."""
    numba = find_spec("numba") is not None
    possible = {"fast": numba, "fast mkl": numba and mkl.installed()}
    return [name for name in VERSIONS if possible.get(name, True)]


class Program:
    """A process that does what it is told to on its standard input, and answers on its output."""

    def __init__(self, name: str, size: str, bench: str, *more: str):
        line = [sys.executable, str(Path(__file__).parent), bench, "--worker", name, size, *more]
        kernels, products = VERSIONS.get(name, ("", ""))
        env = {"TPARALLEL_KERNELS": kernels, "TPARALLEL_PRODUCTS": products}
        pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(line, env=os.environ | env, **pipe)
        self._answer()

    def step(self) -> None:
        self.ask("step")

    def end(self) -> dict:
        """What it found out about itself."""
        found = self.ask("end")
        self.process.communicate()
        return found

    def ask(self, word: str) -> dict:
        print(word, file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(self.process.args)} ended with {self.process.wait()}")
        return json.loads(line)


def serve(step: Callable[[], object], end: Callable[[], dict]) -> None:
    """The process behind ``Program``: ready, then an answer to every line."""
    print("{}", flush=True)
    for word in sys.stdin:
        said = end() if word.strip() == "end" else step()
        print(json.dumps(said if isinstance(said, dict) else {}), flush=True)


def chosen() -> dict[str, str]:
    """What this process computes with, as a row says it."""
    from tparallel import kernels, products

    return {"kernels": kernels.name, "products": products.name}
