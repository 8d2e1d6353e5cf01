"""What each transport delivers between two ranks that share a device, and how fast.

A job for each: a library that is wrongly taken to be CUDA-aware ends in a segmentation fault, and
must not take the others with it.  ``direct`` is tried only where the library says that it can.
"""

import json
import sys
import time
from pathlib import Path

from gpu_lib.process import answer, last_line

WAYS = {  # name -> environment
    "staged": {"TPARALLEL_TRANSPORT": "staged"},
    "staged, ring": {"TPARALLEL_TRANSPORT": "staged", "TPARALLEL_ALL_REDUCE": "ring"},
    "ipc": {"TPARALLEL_TRANSPORT": "ipc"},
    "direct": {"TPARALLEL_TRANSPORT": "direct"},
    "direct, ring": {"TPARALLEL_TRANSPORT": "direct", "TPARALLEL_ALL_REDUCE": "ring"},
}
SIZES = (1 << 10, 1 << 20, 1 << 26)  # bytes
DTYPES = ("float64", "float32", "bfloat16", "float16")


def run(env: dict, rehearse: bool) -> dict:
    """{way: right?, GB/s by size}; ``failed`` if one that should work is wrong."""
    aware = rehearse or _is_aware(env)
    found: dict = {"failed": False}
    for way, more in WAYS.items():
        if way.startswith("direct") and not aware:
            found[way] = {"skipped": "this MPI does not say that it is CUDA-aware"}
            print(f"{way:14} skipped: {found[way]['skipped']}")
            continue
        sizes = SIZES[: 2 if rehearse else None]
        script = [sys.executable, "-c", START, str(Path(__file__).parent.parent), *map(str, sizes)]
        ended = answer(script, {**env, **more}, seconds=300)
        if ended["code"] == 0:
            found[way] = json.loads(last_line(ended["out"]))
            rates = (f"{int(size):>9,} B {r:7.2f} GB/s" for size, r in found[way]["rates"].items())
            print(f"{way:14} right; {', '.join(rates)}", flush=True)
        else:
            found[way], found["failed"] = ended, True
    return found


START = """
import sys
sys.path.insert(0, sys.argv[1])
from tparallel import launch
sys.exit(launch.run_ranks(2, ["-c", "import sys; sys.path.insert(0, sys.argv[1]); "
                              "from gpu_lib.transports import rank; rank(sys.argv[2:])",
                              *sys.argv[1:]]))
"""


def _is_aware(env: dict) -> bool:
    code = "from tparallel.comm.transport import cuda_aware; print(cuda_aware()[0])"
    return last_line(answer([sys.executable, "-c", code], env, 60)["out"]) == "True"


def rank(sizes: list[str]) -> None:
    """One of the two: sums that are known, then all-reduces against the clock."""
    from mpi4py import MPI

    from tparallel.backend import synchronize, use_local_device, xp
    from tparallel.comm.axis import Axis
    from tparallel.comm.ledger import Ledger
    from tparallel.zero.precision import storage_dtype

    comm = MPI.COMM_WORLD
    use_local_device(comm.rank, comm.size)
    axis = Axis("tp", comm.Dup(), Ledger())
    for dtype in DTYPES:
        x = (xp.arange(10_001) % 7 + axis.rank).astype(storage_dtype(dtype))
        total = axis.all_reduce(x, what="x").astype(xp.float64)
        assert bool((total == 2 * (xp.arange(10_001) % 7) + 1).all()), dtype
        whole = axis.all_gather(x, what="x")
        assert bool((whole[-10_001:] == (xp.arange(10_001) % 7 + 1).astype(x.dtype)).all()), dtype
    rates = {}
    for size in map(int, sizes):
        x, rounds = xp.ones(size // 4, xp.float32), 3 if size > 1 << 22 else 20
        axis.all_reduce(x, what="x")
        comm.Barrier()
        start = time.perf_counter()
        for _ in range(rounds):
            axis.all_reduce(x, what="x", out=x)
            x *= 0.5
        synchronize()
        rates[size] = size * rounds / (time.perf_counter() - start) / 1e9
    axis.close()
    if comm.rank == 0:
        print(json.dumps({"rates": rates}), flush=True)
