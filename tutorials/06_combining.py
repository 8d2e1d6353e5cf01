"""Combining: tensor × pipeline × data parallelism with ZeRO, on eight ranks.

You will see where each of eight ranks stands in a 2 × 2 × 2 mesh, what it holds, what it sends
over each axis in one training step, how many messages that is, and from it why tensor
parallelism gets the fastest links and data parallelism the slowest.  Then the same step on a
simulated slow link, axis by axis.  At the end, loss and gradients against the serial step.

    mpirun -n 8 .venv/bin/python -m mpi4py tutorials/06_combining.py            (15 seconds)
"""

# %% Three questions, three axes
# tp: how is one layer computed?  pp: which layers live here?  dp and ZeRO: who stores and updates
# each number?  Each replaces one thing of the serial program: a layer's functions, the loop over
# layers, the dict of parameters.  That is why they multiply.

import os
import time

from tparallel import launch

launch.limit_threads(os.environ)

from mpi4py import MPI

from tparallel import data
from tparallel.comm.link import Link
from tparallel.comm.mesh import AXES
from tparallel.compare.equality import worst_error
from tparallel.config import Layout, ModelConfig, TrainConfig
from tparallel.serial.train import initial_params, loss_and_grads
from tparallel.tell import everyone, once
from tparallel.train import Trainer

comm = MPI.COMM_WORLD
if comm.size != 8:
    raise SystemExit(f"2 x 2 x 2 needs eight ranks; this job has {comm.size}. Use mpirun -n 8.")

model = ModelConfig(L=4, D=64, H=4, T=32, V=256)
train = TrainConfig(dtype="float64", init="random", global_batch=8)
layout = Layout(tp=2, pp=2, dp=2, zero=1, microbatches=2)
tokens, targets = data.load().batch(0, train.global_batch, model.T, seed=0)

# %% Where every rank stands
# tp varies fastest: ranks 0 and 1, neighbours on one node, cut the same layers.  Then pp, then dp.

trainer = Trainer(model, train, layout, comm)
at = trainer.mesh.coords
layers = [layer for chunk in trainer.executor.chunks.values() for layer in chunk.layers]
once(comm, f"\n{layout.name}: who stands where, and computes which layers")
everyone(comm, f"dp {at.dp}  pp {at.pp}  tp {at.tp}   half of {', '.join(layers)}")

# %% Who holds what
# tp and pp each halve the parameters of a rank; ZeRO-1 halves the optimizer's state once more.

held = {
    kind: sum(v.nbytes for part in vectors for v in part.values())
    for kind, vectors in {
        "params": [trainer.store.params],
        "grads": [trainer.store.grads],
        "optimizer": trainer.store.moments,
    }.items()
}
once(comm, "\nbytes held")
everyone(comm, "  ".join(f"{kind} {size:>7,}" for kind, size in held.items()))

# %% One step, and the ledger
# Count not only bytes but messages: latency is paid per message.

trainer.mesh.ledger.clear()
loss, norm = trainer.step(0, tokens, targets)
totals = trainer.mesh.ledger.totals
once(comm, "\nsent in one step, by axis: bytes (messages)")
sent = {}
for axis in AXES:
    messages = sum(t.count for k, t in totals.items() if k.axis == axis and t.wire)
    sent[axis] = trainer.mesh.ledger.wire(axis), messages
everyone(comm, "   ".join(f"{axis} {b:>9,} ({m:>2})" for axis, (b, m) in sent.items()))

# %% Which axis goes where
# The axis with the most frequent messages needs the lowest latency, so its ranks should be the
# nearest.  tp speaks four times per layer and micro-batch and somebody waits each time; pp once
# per boundary and micro-batch; dp once per layer and *step*, and nobody waits before the end.

for axis in AXES:
    per_step = comm.allreduce(sent[axis][1], MPI.MAX)
    bytes_ = comm.allreduce(sent[axis][0], MPI.MAX)
    once(comm, f"{axis}: at most {per_step:3} messages and {bytes_:9,} bytes from a rank per step")
trainer.close()

# %% The price of a slow link, axis by axis
# Now every rank's messages go through a simulated link of 1 Gbit/s and 2 ms: the same step with
# all eight ranks on one axis, or on all three.  Eight ranks may share few cores here, so compare
# the rows with each other, not with a cluster.

rows = {
    "tp=8": Layout(tp=8, microbatches=2),
    "pp=4 dp=2": Layout(pp=4, dp=2, microbatches=2),
    "dp=8 zero=1": Layout(dp=8, zero=1),
    "dp=8 zero=3": Layout(dp=8, zero=3),
    layout.name: layout,
}
wide = ModelConfig(L=4, D=64, H=8, T=32, V=256)
once(comm, "\nseconds per step on a link of 1 Gbit/s and 2 ms; bytes sent by the busiest rank")
for name, row in rows.items():
    slow = Trainer(wide, train, row, comm, Link.parse("1gbit,2ms"))
    slow.step(0, tokens, targets)  # the first step also warms up
    slow.mesh.ledger.clear()
    comm.Barrier()
    start = time.perf_counter()
    slow.step(1, tokens, targets)
    comm.Barrier()
    seconds = time.perf_counter() - start
    most = comm.allreduce(sum(slow.mesh.ledger.wire(axis) for axis in AXES), MPI.MAX)
    once(comm, f"    {name:30} {seconds:6.3f} s   {most:10,} bytes")
    slow.close()

# %% Equal to serial
# The proof of any layout: loss and every gradient, gathered and unsharded, against one process.

trainer = Trainer(model, train, layout, comm)
trainer.forward_backward(tokens, targets)
grads = trainer.grads()
if grads is not None:
    serial_loss, serial_grads = loss_and_grads(initial_params(model, train), tokens, targets)
    error, name = worst_error(grads, serial_grads)
    print(f"\nloss {loss:.12f}, serial {serial_loss:.12f}")
    print(f"worst gradient error {error:.0e} ({name}): equal to serial")
    assert error < 1e-12 and abs(loss - serial_loss) < 1e-12 * serial_loss
trainer.close()
