"""``scripts/bench BENCH``: run one benchmark on its ranks, print its table, write its rows.

A benchmark is a module of this folder, ``-`` in its name as ``_``, with

    RANKS                    how many ranks it needs
    add_arguments(parser)    its own options
    run(args, comm)          its rows, on rank 0: dicts with the keys of ``COLUMNS``
"""

import argparse
import datetime
import importlib
import json
import os
import platform
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[0:1] = [str(HERE.parent), str(HERE.parent.parent)]

from tparallel import launch  # noqa: E402 (found by the path above)

BENCHES = {
    "single": "one process against PyTorch eager and compiled, speed and memory",
    "tensor-parallel": "tp = 2 against Megatron's cut by hand in PyTorch, over gloo",
    "pipeline": "pp = 2 against torch.distributed.pipelining",
    "zero": "dp = 2: ZeRO-1 against DistributedDataParallel, ZeRO-3 against FSDP2",
    "collectives": "the verbs against mpi4py",
    "generate": "one process: prefill and decode against PyTorch eager with a cache",
    "generate-parallel": "tp = 2 and pp = 2: prefill and decode beside one rank",
    "bubble": "the pipeline's bubble, measured against predicted",
}
COLUMNS = ("bench", "size", "peer", "ours", "theirs", "unit", "ratio")


def main() -> int:
    args = parse(sys.argv[1:])
    if args.bench == "all":
        return run_all(args)
    bench = module(args.bench)
    if launch.started_copies() == 0 and bench.RANKS > 1:
        return launch.run_ranks(bench.RANKS, [str(HERE), *sys.argv[1:]])
    return launch.guarded(lambda: run(bench, args))


def module(name: str):
    return importlib.import_module(f"bench_lib.{name.replace('-', '_')}")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Speed, beside PyTorch.")
    benches = parser.add_subparsers(dest="bench", required=True, metavar="BENCH")
    chosen = next((a for a in argv if not a.startswith("-")), None)
    for name, about in {**BENCHES, "all": "each of them"}.items():
        sub = benches.add_parser(name, help=about, description=about)
        sub.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
        if name == chosen and name in BENCHES:
            module(name).add_arguments(sub)
    return parser.parse_args(argv)


def run(bench, args: argparse.Namespace) -> int:
    from mpi4py import MPI

    rows = bench.run(args, MPI.COMM_WORLD)
    if MPI.COMM_WORLD.rank == 0:
        show(rows)
        if args.json:
            write(args.json, rows)
    return 0


def run_all(args: argparse.Namespace) -> int:
    """One after the other, each in its own job; the rows of all in one file."""
    rows: list[dict] = []
    for name in BENCHES:
        part = Path(f"{args.json or 'bench.json'}.{name}")
        bench = module(name)
        code = launch.run_ranks(bench.RANKS, [str(HERE), name, "--json", str(part)])
        if code:
            return code
        rows += json.loads(part.read_text())["rows"]
        part.unlink()
    if args.json:
        write(args.json, rows)
    return 0


def show(rows: list[dict]) -> None:
    print(f"\n{machine()}\n{'':24}{'size':>6}  {'peer':28}{'ours':>12}{'theirs':>12}{'ratio':>8}")
    for row in rows:
        ours, theirs, ratio = row["ours"], row["theirs"], row["ratio"]
        print(
            f"{row['bench']:24}{row['size']:>6}  {row['peer']:28}{ours:12,.4g}{theirs:12,.4g}"
            f"{ratio:8.3f}  {row['unit']}"
        )


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    print(f"written: {path}")


def machine() -> str:
    """What was measured on, and when: processor, cores, versions."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [ln for ln in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in ln]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    import numpy

    versions = [f"Python {platform.python_version()}", f"NumPy {numpy.__version__}"]
    if "torch" in sys.modules:
        versions.append(f"PyTorch {sys.modules['torch'].__version__}")
    day = datetime.date.today().isoformat()
    return f"{cpu}, {os.cpu_count()} cores; {', '.join(versions)}; {launch.installed()}; {day}"


if __name__ == "__main__":
    sys.exit(main())
