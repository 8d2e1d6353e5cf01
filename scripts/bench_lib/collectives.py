"""Two ranks: each verb against the mpi4py call that a user would write in its place.

A verb is that call, a line in the ledger, and, for sums, additions in rank order.  8 bytes show
what a call costs, 16 MB what share of the bandwidth it reaches.
"""

import argparse
import time
from statistics import median

import numpy as np
from mpi4py import MPI

from tparallel.comm.axis import Axis
from tparallel.comm.ledger import Ledger
from tparallel.comm.pending import Pending
from tparallel.config import Layout, TrainConfig
from tparallel.train import Trainer

from . import alternate
from .sizes import SIZES as SIZES_OF_MODELS

RANKS = 2
SIZES = {"8 B": 8, "4 KB": 4 << 10, "64 KB": 64 << 10, "1 MB": 1 << 20, "16 MB": 16 << 20}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", default=",".join(SIZES), help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=40, help="of each pair (default: 40)")


def run(args: argparse.Namespace, comm) -> list[dict]:
    axis, rows = Axis("bench", comm.Dup(), Ledger()), []
    for size in args.sizes.split(","):
        for verb, (ours, theirs) in pairs(axis, comm, SIZES[size]).items():
            times = in_turns(
                ours, theirs, comm, args.rounds, calls=1 + 2000 // (SIZES[size] // 64 + 50)
            )
            rows.append(row(verb, size, *times))
    axis.close()
    return [*rows, ledger_row(args.rounds, comm)]


def ledger_row(rounds: int, comm) -> dict:
    """Microseconds of a step of size S that go into its ledger: calls times the time of a line."""
    model, sequences = SIZES_OF_MODELS["S"]
    train = TrainConfig(global_batch=sequences, clip=0.0)
    trainer = Trainer(model, train, Layout(tp=RANKS), comm)
    step = alternate.step_of(trainer, *alternate.batch(model, sequences))
    seconds = median(alternate.alternate({"step": step}, comm, rounds)["step"])
    ledger = trainer.mesh.ledger
    ledger.clear()
    step()
    calls = sum(total.count for total in ledger.totals.values())
    trainer.close()
    many = 10_000
    start = time.perf_counter()
    for _ in range(many):  # what a verb does for the ledger, and nothing else
        Pending(ledger, ledger.record("tp", "all_reduce", "x", 8, 8), 0.0, int, None).wait()
    line = (time.perf_counter() - start) / many
    return {
        "bench": "ledger",
        "size": "S",
        "peer": f"a step, tp = {RANKS}, {calls} verbs",
        "ours": 1e6 * calls * line,
        "theirs": 1e6 * seconds,
        "unit": "µs",
        "ratio": seconds / (calls * line),
    }


def pairs(axis: Axis, comm, nbytes: int) -> dict:
    """{verb: (ours, mpi4py's)} on float32 vectors of so many bytes."""
    n, other = nbytes // 4, 1 - comm.rank
    x, y, both = np.ones(n, np.float32), np.empty(n, np.float32), np.empty(2 * n, np.float32)
    part = np.empty(n // 2, np.float32)

    def exchange():
        sent = axis.send(x, to=other, tag=1, what="x")
        axis.recv(y, source=other, tag=1, what="x")
        sent.wait()

    def exchange_raw():
        sent = comm.Isend(x, other, 1)
        comm.Irecv(y, other, 1).Wait()
        sent.Wait()

    return {
        "all_reduce": (
            lambda: axis.all_reduce(x, what="x", out=y),
            lambda: comm.Allreduce(x, y),
        ),
        "reduce_scatter": (
            lambda: axis.reduce_scatter(x, what="x"),
            lambda: comm.Reduce_scatter_block(x, part),
        ),
        "all_gather": (
            lambda: axis.all_gather(x, what="x", out=both),
            lambda: comm.Allgather(x, both),
        ),
        "send and recv": (exchange, exchange_raw),
    }


def in_turns(ours, theirs, comm, rounds: int, calls: int) -> tuple[list, list]:
    """Seconds of a call, of the slowest rank, in each round."""
    out: tuple[list, list] = ([], [])
    for _ in range(3 + rounds):
        for call, seconds in zip((ours, theirs), out):
            comm.Barrier()
            start = time.perf_counter()
            for _ in range(calls):
                call()
            seconds.append(comm.allreduce((time.perf_counter() - start) / calls, MPI.MAX))
    return out[0][3:], out[1][3:]


def row(verb: str, size: str, ours: list, theirs: list) -> dict:
    return {
        "bench": verb,
        "size": size,
        "peer": "mpi4py",
        "ours": 1e6 * median(ours),
        "theirs": 1e6 * median(theirs),
        "unit": "µs",
        "ratio": median(t / o for o, t in zip(ours, theirs)),
    }
