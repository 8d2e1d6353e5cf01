"""``scripts/bench BENCH``: run one benchmark on its ranks, print its table, write its rows.

A benchmark is a module of this folder, ``-`` in its name as ``_``, with

    RANKS                    how many ranks it needs
    add_arguments(parser)    its own options
    run(args, comm)          its rows, on rank 0: dicts with bench, size, peer, ours, theirs, unit
                             and ratio (above 1: ours is better, but for memory)

To each row are added the kernels, the products and the MPI that it was measured with.
"""

import argparse
import importlib
import json
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[0:1] = [str(HERE.parent), str(HERE.parent.parent)]

from tparallel import launch  # noqa: E402 (found by the path above)

launch.limit_threads(os.environ)  # before NumPy is imported

from bench_lib import every, show  # noqa: E402

BENCHES = {
    "single": "one process against PyTorch eager and compiled, speed and memory",
    "tensor-parallel": "tp = 2 against Megatron's cut by hand in PyTorch, over gloo",
    "pipeline": "pp = 2 against torch.distributed.pipelining",
    "zero": "dp = 2: ZeRO-1 against DistributedDataParallel, ZeRO-3 against FSDP2",
    "scaling": "ZeRO-1 and tp = 2 on two ranks beside one rank of the same code",
    "crowded": "4 and 8 ranks on the cores of this machine beside one rank",
    "collectives": "the verbs against mpi4py",
    "generate": "one process: prefill and decode against PyTorch eager with a cache",
    "generate-parallel": "tp = 2 and pp = 2: prefill and decode beside one rank",
    "bubble": "the pipeline's bubble, measured against predicted",
}
EXAMPLES = """examples:
  scripts/bench all --json results/bench.json    everything, one table: about {all:.0f} minutes
  scripts/bench all --quick                      the same with fewer rounds: about {quick:.0f}
  scripts/bench single --sizes M                 one process at size M
  scripts/bench crowded                          more ranks than cores; needs no PyTorch
  scripts/bench table results/bench.json         README's table of the ratios
"""


def main() -> int:
    args = parse(sys.argv[1:])
    os.environ["TPARALLEL_CHECK"] = "0"  # it is for tests, and costs time
    if args.bench == "table":
        print(show.markdown(json.loads(args.file.read_text())["rows"]))
        return 0
    if args.bench == "all":
        return every.run(args)
    bench = module(args.bench)
    if launch.started_copies() == 0 and bench.RANKS > 1:
        return launch.run_ranks(bench.RANKS, [str(HERE), *sys.argv[1:]])
    return launch.guarded(lambda: run(bench, args))


def module(name: str):
    return importlib.import_module(f"bench_lib.{name.replace('-', '_')}")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Speed, beside PyTorch.",
        epilog=EXAMPLES.format(all=every.expected(), quick=every.expected(quick=True)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    benches = parser.add_subparsers(dest="bench", required=True, metavar="BENCH")
    chosen = next((a for a in argv if not a.startswith("-")), None)
    for name, about in {**BENCHES, "all": "each of them, in one run"}.items():
        sub = benches.add_parser(name, help=about, description=about)
        sub.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
        if name == chosen:
            (every if name == "all" else module(name)).add_arguments(sub)
    about = "print README's table of the ratios in a file of rows"
    benches.add_parser("table", help=about, description=about).add_argument("file", type=Path)
    return parser.parse_args(argv)


def run(bench, args: argparse.Namespace) -> int:
    from mpi4py import MPI

    from bench_lib.program import chosen

    rows = bench.run(args, MPI.COMM_WORLD)
    if MPI.COMM_WORLD.rank == 0 and rows:
        rows = [row | chosen() | {"mpi": str(launch.installed())} | row for row in rows]
        show.table(rows)
        if args.json:
            show.write(args.json, rows)
            print(f"written: {args.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
