"""``scripts/bench all``: every part in processes of its own, one table, one file.

A part that fails, or that does not end, is named at the end; what the others found is kept.  The
file is written after every part.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from tparallel import launch

from . import show
from .parts import TABLE, WITH_TORCH, Part, parts

HERE = Path(__file__).resolve().parent
PATIENCE = 8  # times as long as a part took elsewhere, before it is ended
GRACE = 60  # seconds that it may take to start, on a machine that is busy
TRUST = 60  # seconds after which the machine's own pace weighs as much as the table's
SHOWN = 15  # lines of what a part said that failed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--benches", default=",".join(TABLE), help="some of them (default: %(default)s)"
    )
    parser.add_argument("--sizes", default="S,M,L", help="of tiny, S, M, L (default: S,M,L)")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a try, no measurement")


def expected(quick: bool = False) -> float:
    """Minutes that everything takes on two cores."""
    return sum(part.seconds for part in parts([*TABLE], ["S", "M", "L"], quick)) / 60


def run(args: argparse.Namespace) -> int:
    """The exit code: 0 where every part ended well."""
    chosen, left_out = split(args.benches.split(","), find_spec("torch") is not None)
    todo = list(parts(chosen, args.sizes.split(","), args.quick))
    if not todo:
        sys.exit(f"no part has the sizes {args.sizes} and can run here: {args.benches}")
    if left_out:
        print(f"left out, because PyTorch is not installed: {', '.join(left_out)}")
    print(f"{len(todo)} parts, about {minutes(sum(part.seconds for part in todo))} on two cores")
    rows: list[dict] = []
    failed: dict[str, str] = {}
    try:
        go_through(todo, rows, failed, args.json)
    except KeyboardInterrupt:
        failed["what was to come"] = "interrupted"
    show.table(rows)
    print(f"written: {args.json}" if args.json else "", flush=True)
    for name, why in failed.items():
        print(f"failed: {name}: {why}", file=sys.stderr)
    return 1 if failed else 0


def split(benches: list[str], torch: bool) -> tuple[list[str], list[str]]:
    """Those that can run here, and those that cannot."""
    if unknown := [name for name in benches if name not in TABLE]:
        sys.exit(f"--benches names some of {', '.join(TABLE)}; {', '.join(unknown)} is none.")
    left_out = [name for name in benches if name in WITH_TORCH and not torch]
    return [name for name in benches if name not in left_out], left_out


def go_through(todo: list[Part], rows: list[dict], failed: dict[str, str], path: Path | None):
    """Every part; ``rows`` and ``failed`` grow, and so does the file."""
    begin, planned = time.monotonic(), 0.0
    for number, part in enumerate(todo):
        pace = (TRUST + time.monotonic() - begin) / (TRUST + planned)
        left = minutes(pace * sum(p.seconds for p in todo[number:]))
        print(f"[{number + 1}/{len(todo)}] {part.name:30} about {left} left", end="", flush=True)
        started = time.monotonic()
        try:
            rows += run_part(part)
            print(f"; took {time.monotonic() - started:.0f} s", flush=True)
        except PartFailed as e:
            failed[part.name], *last = str(e).split("\n")
            print("", *last, f"    failed: {failed[part.name]}", sep="\n", flush=True)
        planned += part.seconds
        if path:
            to_come = [part.name for part in todo[number + 1 :]]
            show.write(path, rows, failed=failed, unfinished=to_come)


class PartFailed(Exception):
    """Why there are no rows, and in further lines the end of what the part said."""


def run_part(part: Part) -> list[dict]:
    """Its rows.  Errors: PartFailed."""
    from .__main__ import module

    with tempfile.TemporaryDirectory() as folder, open(f"{folder}/said", "w+") as said:
        argv = [str(HERE), *part.argv(), "--json", f"{folder}/rows.json"]
        code = ended(module(part.bench).RANKS, argv, part, said)
        if code == 0:
            return json.loads(Path(folder, "rows.json").read_text())["rows"]
        said.seek(0)
        last = [f"    | {line.rstrip()}" for line in said.readlines()[-SHOWN:]]
        how = "did not end" if code is None else f"exit code {code}"
        raise PartFailed("\n".join([how, *last]))


def ended(ranks: int, argv: list[str], part: Part, said) -> int | None:
    """The exit code; None if the part had to be ended."""
    env = {"TPARALLEL_PRODUCTS": part.products}
    pipes = {"stdout": said, "stderr": said}
    if ranks == 1:
        process = subprocess.Popen([sys.executable, *argv], env=os.environ | env, **pipes)
        job, end = process, process.kill
    else:
        started = launch.Job(ranks, argv, env=env, **pipes)
        job, end = started.process, started.end
    try:
        return job.wait(GRACE + PATIENCE * part.seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        end()


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"
