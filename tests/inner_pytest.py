"""pytest in a process of its own, on tests that are made to fail."""

import os
import re
import secrets
import subprocess
import sys
import time
from pathlib import Path

from tparallel import launch

HERE = Path(__file__).parent


class Inner:
    """pytest, in a process of its own, on one file with the given text."""

    def __init__(self, folder: Path, text: str) -> None:
        file = folder / "test_inner.py"
        file.write_text(text)
        self.mark = f"TEST_MPITEST={secrets.token_hex(8)}"
        env = {**os.environ, "PYTHONPATH": str(HERE), **dict([self.mark.split("=")])}
        line = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider"]
        self.process = subprocess.Popen(
            [*line, "--rootdir", folder, file],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def end(self) -> str:
        return self.process.communicate(timeout=200)[0]

    def left(self) -> list[int]:
        """Processes below pytest that are alive some seconds after it ended."""
        end = time.monotonic() + 10
        while (pids := launch.processes(self.mark)) and time.monotonic() < end:
            time.sleep(0.05)
        return pids


def report(out: str, name: str) -> str:
    """What pytest printed about one failed test."""
    return re.split(r"\n_{3,} ", out.split(f"_ {name} _")[1])[0]
