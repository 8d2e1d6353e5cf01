"""Pipeline parallel: four ranks hold four parts of the model, and a schedule keeps them busy.

You will see three schedules drawn, the messages that one implies, what the simulator predicts, a
real run with the measured timeline beside the planned one, a schedule of your own refused and then
run, why ZeRO-2 and 3 cost so much inside a pipeline, and where the model is best cut.  At the end,
every gradient against the serial step, bit for bit.

    mpirun -n 4 .venv/bin/python -m mpi4py tutorials/04_pipeline_parallel.py       (15 seconds)
"""

# %% The question
# Which layers live here, and in what order do they run?  Rank s holds a part of the layers, stage
# s.  A batch is cut into M micro-batches that travel down the stages and, as gradients, up again.

import os
import tempfile
from pathlib import Path

from tparallel import launch

launch.limit_threads(os.environ)

import numpy as np
from mpi4py import MPI

from tparallel import data
from tparallel.config import Layout, ModelConfig, TrainConfig
from tparallel.errors import ScheduleError
from tparallel.pipeline_parallel import measured
from tparallel.pipeline_parallel.draw import draw
from tparallel.pipeline_parallel.program import program
from tparallel.pipeline_parallel.schedule import peak_in_flight
from tparallel.pipeline_parallel.schedules import make
from tparallel.pipeline_parallel.simulate import simulate
from tparallel.pipeline_parallel.stage import cut_layers
from tparallel.pipeline_parallel.text import parse
from tparallel.pipeline_parallel.validate import validate
from tparallel.serial.train import initial_params, loss_and_grads
from tparallel.tell import everyone, once
from tparallel.train import Trainer

comm, S, M = MPI.COMM_WORLD, 4, 8
if comm.size != S:
    raise SystemExit(f"this pipeline has four stages; this job has {comm.size}. Use mpirun -n 4.")

# %% A schedule is data
# For every stage the order of its computations, nothing else.  F3 is the forward of micro-batch 3,
# BW3 its backward, which takes twice as long; a dot is a stage that waits: the bubble.

for name in ("naive", "gpipe", "1f1b"):
    schedule = make(name, S, 4)
    timeline = simulate(schedule)
    once(comm, f"\n{name}: bubble {timeline.bubble:.0%}", draw(timeline, 100).plain)

# %% The messages follow by a rule
# Nobody writes sends and receives: what a chunk needs comes from the stage that holds the chunk
# before it, directly before the forward; what it makes leaves directly after.

once(comm, "\nstage 1 of 1F1B begins:", "  ".join(map(str, program(schedule, 1)[:9])))

# %% What it costs: bubble and memory
# GPipe and 1F1B idle alike, (S−1)/(M+S−1) of the time: more micro-batches, less bubble.  But GPipe
# holds all M of them on every stage, 1F1B at most S − s on stage s.  Interleaved gives each stage
# two chunks of half the layers: half the bubble, for twice the messages.
#
# ![GPipe: all forwards, then all backwards](gpipe.svg)
# ![1F1B: one forward, one backward](1f1b.svg)
# ![interleaved 1F1B: two chunks on each stage](interleaved.svg)

once(comm, f"\n{S} stages       bubble at M = 4, 8, 32        activations held at M = 8, by stage")
for name in ("naive", "gpipe", "1f1b", "interleaved"):
    bubbles = "  ".join(f"{simulate(make(name, S, m)).bubble:6.1%}" for m in (4, 8, 32))
    held = [peak_in_flight(order) for order in make(name, S, M).orders]
    once(comm, f"    {name:12} {bubbles}          {held}")

# %% A real run, on one clock
# Each rank trains its stage; every computation is timed on the rank's own clock, and the clocks are
# aligned.  The plan beside it is the simulation with the measured time of each operation.  Four
# ranks on fewer cores take turns, so that the picture is stretched, but its order is the plan's.

model = ModelConfig(L=9, D=64, H=4, T=64)
train = TrainConfig(global_batch=2 * M, init="random")
layout = Layout(pp=S, schedule="1f1b", microbatches=M)
trainer = Trainer(model, train, layout, comm)
everyone(comm, f"holds {', '.join(trainer.executor.chunks[comm.rank].layers)}")
steps = measured.steps(trainer, warm_up=2, count=5)
if steps:
    planned, middle = simulate(steps[0].schedule, measured.costs(steps)), steps[2]
    for name, timeline in (("planned", planned), ("measured", middle)):
        print(f"\n{name}: {timeline.makespan * 1e3:.0f} ms, bubble {timeline.bubble:.0%}")
        print(draw(timeline, 100, max(planned.makespan, middle.makespan)).plain)

# %% Held: planned and counted
# A cache lives from a micro-batch's forward to its backward.  Counted while the stage runs:

tokens, targets = data.load().batch(0, train.global_batch, model.T, seed=0)
held, plan = [], peak_in_flight(trainer.schedule.orders[comm.rank])
trainer.forward_backward(tokens, targets, after=lambda executor: held.append(executor.in_flight))
everyone(comm, f"activations in flight: at most {max(held)}, planned {plan}")
assert max(held) == plan
trainer.close()

# %% Write your own schedule
# One row per stage: chunk, operation, micro-batch.  This one waits for ever, and says so before any
# rank sends a byte.  (tparallel schedule mine.txt does the same.)

wrong = "0F0 0BW0 0F1 0BW1\n1F1 1BW1 1F0 1BW0"
try:
    validate(parse(wrong, "mine.txt"))
except ScheduleError as error:
    once(comm, f"\nrefused: {error}")

# This one runs: two stages upside down (the head on rank 0), weight gradients late; dp = 2.

own = "1F0 1B0 1F1 1B1 1W0 1W1\n0F0 0F1 0BW0 0BW1\n"
with tempfile.TemporaryDirectory() as folder:
    path = Path(comm.bcast(folder)) / "mine.txt"
    if comm.rank == 0:
        path.write_text(own)
    comm.Barrier()
    mine = Layout(pp=2, dp=2, schedule=str(path), microbatches=2)
    trainer = Trainer(model, TrainConfig(global_batch=8), mine, comm)
    rows = data.load().batch(0, 8, model.T, seed=0)
    losses = [trainer.step(step, *rows)[0] for step in range(5)]
    once(comm, f"\nyour own: losses {'  '.join(f'{loss:.3f}' for loss in losses)}")
    trainer.close()

# %% ZeRO inside a pipeline
# A pipeline needs several micro-batches, and ZeRO-2 sums gradients after each of them, ZeRO-3 also
# fetches the parameters twice for each.  Bytes that rank 0 sends over dp in a step of 4:

once(comm, "\npp = 2, dp = 2, four micro-batches: bytes over dp")
sent = []
for zero in range(4):
    trainer = Trainer(model, train, Layout(pp=2, dp=2, zero=zero, microbatches=4), comm)
    trainer.step(0, tokens, targets)
    sent.append(trainer.mesh.ledger.wire("dp"))
    trainer.close()
    once(comm, f"    ZeRO-{zero}  {sent[-1]:10,}   {sent[-1] / sent[0]:.2f} times ZeRO-0")

# %% Where to cut
# As many blocks on every stage is fair only while the head is small.  With a vocabulary of 50,257
# its product costs as much as many blocks; cut="cost" counts it.

large = ModelConfig(L=12, D=256, H=4, T=128, V=50_257)
for cut in ("even", "cost"):
    blocks = [
        sum(layer.startswith("block") for layer in part) for part in cut_layers(large, S, cut)
    ]
    once(comm, f"cut={cut}: blocks per stage {blocks}, and the head on the last")

# %% Equal to serial
# The additions are serial's and in serial's order, so that in float32 every bit is the same.

trainer = Trainer(model, train, layout, comm)
loss = comm.allreduce(trainer.forward_backward(tokens, targets))
grads = trainer.grads()
trainer.close()
if grads is not None:
    true_loss, true = loss_and_grads(initial_params(model, train), tokens, targets, M)
    same = all(np.array_equal(grads[u][n], true[u][n]) for u in true for n in true[u])
    print(f"\nloss {loss:.7f}, serial {true_loss:.7f}; every gradient the same bits: {same}")
    assert same and loss == true_loss
