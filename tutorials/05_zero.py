"""ZeRO: who stores each number?  From `1 and 1` to a model that does not fit on one device.

You will see two ranks train on different rows, first each with a whole copy of everything, then
with one thing after another cut in two: the optimizer's state, the gradients, the parameters.
For each stage, what every rank stores and what it sends, measured.  Then: does it fit?  What does
a slow link make of it?  And when is cutting finer a loss?

    mpirun -n 2 .venv/bin/python -m mpi4py tutorials/05_zero.py                  (20 seconds)
"""

# %% 1 and 1
# Two vectors, [1, 2] and [1, 2].  Rank 0 keeps the first element of each, `1 and 1`; rank 1 keeps
# `2 and 2`.  To compute with the whole vectors both put them together (all_gather), and drop them
# when they are done.  On the way back each has a gradient for *every* element, from its own data;
# the sum of both is wanted only where the element is kept (reduce_scatter).

import os
import time
from itertools import product

from tparallel import launch

launch.limit_threads(os.environ)

import numpy as np
from mpi4py import MPI

from tparallel import data
from tparallel.comm.link import Link
from tparallel.comm.mesh import Mesh
from tparallel.compare.equality import worst_error
from tparallel.compare.memory import nbytes
from tparallel.config import Layout, ModelConfig, TrainConfig, replace
from tparallel.predict.held import states
from tparallel.serial.parameters import count
from tparallel.serial.train import initial_params, train_step, zeros_like
from tparallel.tell import everyone, once
from tparallel.train import Trainer

comm = MPI.COMM_WORLD
if comm.size != 2:
    raise SystemExit(f"two elements need two ranks; this job has {comm.size}. Use mpirun -n 2.")
mesh = Mesh(Layout(dp=2), comm)
keeps = [np.array([1.0 + comm.rank]), np.array([1.0 + comm.rank])]
a, b = (mesh.dp.all_gather(x, what="vectors") for x in keeps)
mine = mesh.dp.reduce_scatter(np.full(2, 10.0 * (1 + comm.rank)), what="gradient")
everyone(comm, f"keeps {keeps[0][0]:g} and {keeps[1][0]:g}, computes {a + b}, receives {mine}")
mesh.close()

# %% Data parallelism, then stage by stage
# Stage 0 is plain data parallelism: each rank trains on half of the rows and keeps everything.
# Only the gradients travel: their sum goes to everybody.  But if both hold the same sum and make
# the same update, one of them is superfluous.  Stage 1 cuts the optimizer's state: each rank
# updates its half of the parameters, and they exchange the halves.  Then nobody needs the other
# half of the summed gradients either (stage 2), and at last the parameters are gathered layer by
# layer, used and dropped (stage 3).  Half precision: 2 + 2 bytes, and 12 for the optimizer.

model = ModelConfig(L=4, D=64, H=4, T=32, V=256)
train = TrainConfig(dtype="float16", global_batch=8, loss_scale=1024.0)
tokens, targets = data.load().batch(0, train.global_batch, model.T, seed=0)
psi = count(model)
once(comm, f"\n{psi:,} parameters of 16 bytes; bytes per parameter that a rank stores, and sends")


def one_step(layout: Layout, link: Link | None = None) -> tuple[Trainer, float]:
    trainer = Trainer(model, train, layout, comm, link)
    return trainer, trainer.step(0, tokens, targets)[0]


for zero in range(4):
    trainer, loss = one_step(Layout(dp=2, zero=zero))
    store = trainer.store
    kinds = store.params, store.grads, store.optimizer.state
    params, grads, optimizer = (nbytes(kind) / psi for kind in kinds)
    sent = trainer.mesh.ledger.wire("dp") / psi
    once(comm, f"\nstage {zero}: the loss is {loss:.6f}")
    everyone(
        comm,
        f"params {params:4.1f}  grads {grads:4.1f}  optimizer {optimizer:4.1f}"
        f"  stores {params + grads + optimizer:5.1f}  sends {sent:.2f}",
    )
    trainer.close()

# %% Does it fit?
# The same count for other sizes, in closed form: 16 Ψ, 4 Ψ + 12 Ψ/n, 2 Ψ + 14 Ψ/n, 16 Ψ/n.
# Choose a limit and read off the first stage that stays below it; activations come on top.

limit, each = 32e9, {"params": 2, "grads": 2, "optimizer": 12}
once(comm, f"\nGB of model states per device; * does not fit into {limit / 1e9:g} GB")
once(comm, "   parameters  devices   stage 0   stage 1   stage 2   stage 3")
for size, n in product((1.5e9, 7.5e9, 70e9), (8, 64)):
    held = [sum(states(int(size), n, zero, each).values()) for zero in range(4)]
    cells = (f"{h / 1e9:8.1f}{'*' if h > limit else ' '}" for h in held)
    once(comm, f"{size / 1e9:10.1f} B {n:8}  " + " ".join(cells).rstrip())

# %% What it costs to cut: stage × micro-batches
# A vector of Ψ numbers cut in n costs (n−1)/n Ψ to sum or to put together.  With one micro-batch
# stages 0, 1 and 2 cost the same: two vectors.  But stage 2 has no room for a whole sum, so it
# reduces after every micro-batch, and stage 3 gathers for each of them, forward and backward.
# `reduce_each=step` gives up stage 2's saving in memory for the time of the accumulation.

once(comm, "\nvectors of Ψ sent per step, times (n−1)/n       M = 1   M = 2   M = 4")
often = "microbatch"
for zero, reduce_each in ((0, "step"), (1, "step"), (2, often), (2, "step"), (3, often)):
    row = []
    for M in (1, 2, 4):
        trainer, _ = one_step(Layout(dp=2, zero=zero, microbatches=M, reduce_each=reduce_each))
        padded = sum(part.padded for part in trainer.store.partitions.values())
        row.append((trainer.mesh.ledger.wire("dp") - 16) / 2 / (padded / 2))  # 16: loss and norm
        trainer.close()
    name = f"stage {zero}, gradients summed each {reduce_each}"
    once(comm, f"{name:46}" + "".join(f"{v:8.0f}" for v in row))

# %% When is cutting finer a loss?
# On a slow link (simulated: 1 Gbit/s, 2 ms) bytes and messages become time.  Prefetching hides
# what it can behind the computation.  Compare down the column: what a finer cut costs.

rows = {
    "stage 0": Layout(dp=2),
    "stage 1": Layout(dp=2, zero=1),
    "stage 3": Layout(dp=2, zero=3),
    "stage 3, without overlap": Layout(dp=2, zero=3, overlap=False),
    "stage 3, four micro-batches": Layout(dp=2, zero=3, microbatches=4),
    "stage 3, all layers in one bucket": Layout(dp=2, zero=3, bucket_bytes=10**9),
}
once(comm, "\nseconds per step on a link of 1 Gbit/s and 2 ms")
for name, layout in rows.items():
    (trainer, _), taken = one_step(layout, Link.parse("1gbit,2ms")), []
    for step in range(1, 6):
        comm.Barrier()
        start = time.perf_counter()
        trainer.step(step, tokens, targets)
        comm.Barrier()
        taken.append(time.perf_counter() - start)
    once(comm, f"    {name:36} {sorted(taken)[2]:6.3f}")
    trainer.close()
once(
    comm,
    "\nCutting finer is a loss as soon as everything fits: a number that is stored once must be",
    "sent each time another rank needs it.  Stage 1 is free (same bytes, a part of the memory);",
    "stage 2 costs M + 1 vectors instead of 2, stage 3 3 M.  And each piece is a message: below",
    "α β bytes (here 250 kB) the latency costs more than the bytes, and layers are better joined.",
)

# %% Equal to serial
# Whoever stores the numbers, they are the same: parameters and moments after three steps.

exact = replace(train, dtype="float64", init="random", optimizer="adamw")
trainer = Trainer(model, exact, Layout(dp=2, zero=3), comm)
params = initial_params(model, exact)
moments = zeros_like(params), zeros_like(params)
for step in range(3):
    trainer.step(step, tokens, targets)
    train_step(params, moments, tokens, targets, step, exact)
gathered, state = trainer.params(), trainer.moments()
if gathered is not None:
    error, moved = worst_error(gathered, params)[0], worst_error(state[1], moments[1])[0]
    print(
        f"\nafter three steps of stage 3: parameters {error:.0e}, moments {moved:.0e} from serial"
    )
    assert error < 1e-10 and moved < 1e-10
trainer.close()
