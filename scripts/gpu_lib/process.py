"""Other processes: how they are started, how long they may take, what they said."""

import os
import subprocess
import time
from pathlib import Path

KEPT = 4000  # characters of output that are written down


def environment(root: Path, rehearse: bool) -> dict:
    """What every process here needs to find the package, and to compute on the device."""
    paths = [str(root), os.environ.get("PYTHONPATH", "")]
    if rehearse:
        paths.insert(0, str(root / "tests" / "standin"))
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "TPARALLEL_BACKEND": "cupy",
        "PYTHONUNBUFFERED": "1",
    }


def answer(line: list[str], env: dict, seconds: float, show: bool = False) -> dict:
    """{code, seconds, out} of a command; code None: it was ended after so many seconds."""
    start = time.monotonic()
    process = subprocess.Popen(
        line, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        out, _ = process.communicate(timeout=seconds)
        code: int | None = process.returncode
    except subprocess.TimeoutExpired:
        process.kill()
        out, code = process.communicate()[0], None
    if show or code != 0:
        print(out, flush=True)
    return {"code": code, "seconds": round(time.monotonic() - start, 1), "out": out[-KEPT:]}


def last_line(out: str) -> str:
    return next((line for line in reversed(out.splitlines()) if line.strip()), "")
