"""Messages and bytes: the verbs that every method is made of, and what each one costs.

You will see the collectives on four ranks, the bytes that each rank really sends, why an
all-reduce is two verbs in one, why sums are made in rank order, and what it means to start a
message early and wait for it late.

    mpirun -n 4 .venv/bin/python -m mpi4py tutorials/02_messages_and_bytes.py       (2 seconds)
"""

# %% The verbs
# `what` says why the bytes move: it becomes a line of the ledger.  Payload is the size of the
# array that the verb is about; wire is what this rank sends.  Published figures mix the two.

import time

import numpy as np
from mpi4py import MPI

from tparallel.comm.link import Link
from tparallel.comm.mesh import Mesh
from tparallel.config import Layout
from tparallel.tell import everyone, once

comm = MPI.COMM_WORLD
n = comm.size
if n < 2:
    raise SystemExit("messages need at least two ranks; this job has one. Use mpirun -n 4.")
mesh = Mesh(Layout(dp=n), comm)
axis, ledger = mesh.dp, mesh.ledger

x = np.arange(8.0) + 10 * axis.rank  # 8 numbers, 64 bytes, different on every rank
everyone(comm, f"starts with {x}")


def show(verb: str, result) -> None:
    total = next(iter(ledger.totals.values()))
    once(comm, f"\n{verb}: payload {total.payload} bytes")
    everyone(comm, f"sends {total.wire:3} bytes, has {result}")
    ledger.clear()


show("all_reduce", axis.all_reduce(x, what="demonstration"))
if x.size % n == 0:
    mine = axis.reduce_scatter(x, what="demonstration")
    show("reduce_scatter", mine)
    show("all_gather", axis.all_gather(mine, what="demonstration"))
show("broadcast", axis.broadcast(x.copy(), root=0, what="demonstration"))

# %% An all-reduce is a reduce-scatter and an all-gather
# Each of the two sends (n−1)/n of the vector, so the all-reduce sends 2 (n−1)/n of it.  This is
# the whole secret of ZeRO-1: data parallelism's all-reduce is taken apart, and the optimizer
# works between the halves, on 1/n of the numbers, for the same bytes.

big = np.random.default_rng(axis.rank).normal(size=1200 * n).astype(np.float32)
one = axis.all_reduce(big, what="one verb")
sent_by_one = ledger.wire("dp")
ledger.clear()
two = axis.all_gather(axis.reduce_scatter(big, what="first half"), what="second half")
sent_by_two = ledger.wire("dp")
ledger.clear()
once(
    comm,
    f"\none all_reduce sends {sent_by_one} bytes per rank, the two halves {sent_by_two}; "
    f"2 (n-1)/n of {big.nbytes} is {2 * (n - 1) * big.nbytes // n}",
)
assert np.array_equal(one, two) and sent_by_one == sent_by_two

# %% Sums in rank order
# Floating-point addition is not associative: another order gives other bits.  These verbs add
# rank 0, then 1, then 2, ..., for every element, however the vector is cut, so that two ways of
# cutting the same sum can be compared bit for bit.  MPI's own reduction may choose another order.

in_order = sum(
    (np.random.default_rng(r).normal(size=1200 * n).astype(np.float32) for r in range(1, n)),
    start=np.random.default_rng(0).normal(size=1200 * n).astype(np.float32),
)
by_mpi = np.empty_like(big)
comm.Allreduce(big, by_mpi)
once(
    comm,
    f"\nequal to adding in rank order: our all_reduce in {(one == in_order).mean():.0%} of the "
    f"elements, MPI's own in {(by_mpi == in_order).mean():.0%}",
)
assert np.array_equal(one, in_order)

# %% Messages between two ranks
# A pipeline sends an activation to the next stage.  The send is *posted*: it returns at once,
# and the array must not change until the send is awaited.  If every rank first waited for its
# own send to be received, and only then received, all would wait for ever.

right, left = (axis.rank + 1) % n, (axis.rank - 1) % n
posted = axis.send(x, to=right, tag=7, what="around the ring")
received = axis.recv(np.empty_like(x), source=left, tag=7, what="around the ring")
posted.wait()
once(comm, "\na ring of messages")
everyone(comm, f"sent {x[0]:.0f}..., received {received[0]:.0f}... from rank {left}")
ledger.clear()

# %% Start early, wait late
# On one machine "the network" is memory, and moving bytes costs the core that would compute.
# To see what a cluster sees, a link is simulated: 1 Gbit/s and 1 ms.  A transfer that is started
# before some work and awaited after it hides behind the work.

slow = Mesh(Layout(dp=n), comm, Link.parse("1gbit,1ms")).dp
gradient = np.ones(500_000 // n * n, np.float32)  # 2 MB


def work(seconds: float = 0.03) -> None:
    time.sleep(seconds)  # stands for a layer's backward


def timed(step) -> float:
    comm.Barrier()
    start = time.perf_counter()
    step()
    comm.Barrier()
    return time.perf_counter() - start


def in_turn() -> None:
    work()
    slow.all_reduce(gradient, what="after the work")


def overlapped() -> None:
    pending = slow.start_all_reduce(gradient, what="beside the work")
    work()
    pending.wait()


waiting = min(timed(in_turn) for _ in range(3))
hidden = min(timed(overlapped) for _ in range(3))
bound = 2 * (n - 1) / n * gradient.nbytes / 125e6 + 2e-3
once(
    comm,
    f"\nthe link needs {bound * 1e3:.0f} ms, the work 30 ms: "
    f"in turn {waiting * 1e3:.0f} ms, overlapped {hidden * 1e3:.0f} ms",
)
assert hidden < waiting
