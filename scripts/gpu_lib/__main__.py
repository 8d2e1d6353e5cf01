"""``scripts/check_gpu``: each part in processes of its own, all answers in one JSON file.

A part that fails, crashes or hangs is written down as such, and the next one begins: a machine with
a GPU is rare, and what it can tell should be told.  The file is written after every part.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[0:1] = [str(HERE.parent), str(ROOT)]

from gpu_lib import bench, transports  # noqa: E402 (found by the path above)
from gpu_lib.process import answer, environment, last_line  # noqa: E402


def main() -> int:
    args = parse(sys.argv[1:])
    env = environment(ROOT, args.rehearse)
    found: dict = {"rehearsed": args.rehearse, "facts": facts(env)}
    if "error" in found["facts"]:
        print(found["facts"]["error"], file=sys.stderr)
        return 2
    print("\n".join(f"{name:10} {value}" for name, value in found["facts"].items()), flush=True)
    for part in args.only:
        print(f"\n== {part}", flush=True)
        found[part] = PARTS[part](env, args.rehearse)
        write(args.json, found)
    bad = [part for part in args.only if found[part]["failed"]]
    print(f"\nwritten: {args.json}; {'failed: ' + ', '.join(bad) if bad else 'nothing failed'}")
    return 1 if bad else 0


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/check_gpu", description="Tests, transports and speed on a machine with a GPU."
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=PARTS,
        default=[*PARTS],
        metavar="PART",
        help=f"some of {', '.join(PARTS)} (default: all)",
    )
    parser.add_argument(
        "--json",
        type=Path,
        default=ROOT / "results" / "gpu.json",
        metavar="FILE",
        help="where the answers go (default: results/gpu.json)",
    )
    # Runs all of this with small sizes on the tests' stand-in for CuPy: it says nothing of a GPU.
    parser.add_argument("--rehearse", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


FACTS = """
import datetime, json, platform
from importlib.metadata import distributions
from mpi4py import MPI
from tparallel import __version__, backend, kernels, launch
from tparallel.comm.transport import chosen, cuda_aware
cuda = backend.xp.cuda.runtime
wanted = ("cupy", "numpy", "mpi4py", "torch", "ml_dtypes", "nvidia-cu")
print(json.dumps({
    "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    "device": backend.device(),
    "driver": cuda.driverGetVersion(),
    "runtime": cuda.runtimeGetVersion(),
    "python": platform.python_version(),
    "tparallel": __version__,
    "cupy": backend.xp.__version__,
    "packages": sorted({f"{d.name} {d.version}" for d in distributions()
                        if d.name.lower().startswith(wanted)}),
    "mpi": str(launch.installed()),
    "cuda-aware": cuda_aware(),
    "transport": chosen(),
    "kernels": kernels.name,
    "attention": kernels.ATTENTION,
}))
"""


def facts(env: dict) -> dict:
    """Device, driver, versions, date; or the ``error`` that there is no such thing here."""
    ended = answer([sys.executable, "-c", FACTS], env, seconds=120)
    if ended["code"] == 0:
        return {**json.loads(last_line(ended["out"])), "nvidia-smi": nvidia_smi()}
    return {"error": f"check_gpu needs CuPy and a GPU that answers: {last_line(ended['out'])}"}


def nvidia_smi() -> str:
    """Name, driver, power limit and clock of every GPU, as its own tool tells them."""
    query = "--query-gpu=name,driver_version,power.limit,clocks.max.sm"
    try:
        line = ["nvidia-smi", query, "--format=csv,noheader"]
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as e:
        return f"not found: {e}"


def tests(env: dict, rehearse: bool) -> dict:
    """``pytest -m gpu``: every kernel against NumPy, every layout on one device against serial."""
    line = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests"]
    here = {**env, "TPARALLEL_BACKEND": "numpy"}  # what the ranks' answers are compared with
    ended = answer(line, here, seconds=1800, show=True)
    return {"failed": ended["code"] != 0, "summary": last_line(ended["out"]), **ended}


PARTS: dict[str, Callable] = {"tests": tests, "transports": transports.run, "bench": bench.run}


def write(path: Path, found: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(found, indent=1) + "\n")
    os.replace(new, path)


if __name__ == "__main__":
    sys.exit(main())
