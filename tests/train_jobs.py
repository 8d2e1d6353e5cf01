"""``tparallel train`` on a tiny model, as a user's shell starts it."""

import json
import subprocess
import sys
import time
from pathlib import Path

TRAIN = ["-m", "tparallel", "train"]
TINY = ["--L", "2", "--D", "16", "--H", "2", "--T", "8", "--V", "259"]


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def start(*argv: str) -> subprocess.Popen:
    """``python ARGV`` as a user's shell would start it, its output readable."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, *argv], start_new_session=True, **pipes)


def wait_for_lines(file: Path, count: int, process: subprocess.Popen) -> None:
    end = time.monotonic() + 30
    while not (file.exists() and len(file.read_text().splitlines()) >= count):
        assert process.poll() is None and time.monotonic() < end, "the run has written no log"
        time.sleep(0.02)
