"""Zero bubble: backward in two halves, and the idle time of a pipeline filled with one of them.

You will see why one half of backward can wait, five schedules that use it, what that costs in
memory, a table of the zero-bubble paper computed anew, and a run on two ranks: bubble predicted
and measured, for every schedule.  At the end, every gradient against serial, bit for bit.

    mpirun -n 2 .venv/bin/python -m mpi4py tutorials/04b_zero_bubble.py            (half a minute)
"""

# %% Two halves
# The backward of y = x W makes two things: dx = dy Wᵀ, which the stage before waits for, and
# dW = xᵀ dy, which only the optimizer waits for.  B makes the first, W the second.

import os

from tparallel import launch

launch.limit_threads(os.environ)

import numpy as np
from mpi4py import MPI

from tparallel import data
from tparallel.config import Layout, ModelConfig, TrainConfig
from tparallel.pipeline_parallel import measured
from tparallel.pipeline_parallel.draw import draw
from tparallel.pipeline_parallel.schedule import BW, B, F, W, in_flight, peak_in_flight
from tparallel.pipeline_parallel.schedules import SCHEDULES, make
from tparallel.pipeline_parallel.simulate import simulate
from tparallel.serial.train import initial_params, loss_and_grads
from tparallel.tell import once
from tparallel.train import Trainer

comm, M = MPI.COMM_WORLD, 8
if comm.size != 2:
    raise SystemExit(f"this pipeline has two stages; this job has {comm.size}. Use mpirun -n 2.")

# %% 1F1B, and what fills its gaps
# In 1F1B stage 3 hands its gradient on only after both halves.  ZB-H1 sends after B, and does W
# where it would otherwise wait: the bubble is (S−1)(F+B−W), a third, for the same memory.
#
# ![ZB-H1: weight gradients where 1F1B waits](zb-h1.svg)

for name in ("1f1b", "zb-h1"):
    timeline = simulate(make(name, 4, 6))
    once(comm, f"\n{name}: bubble {timeline.bubble:.0%}", draw(timeline, 100).plain)

# %% No bubble at all
# ZB-H2 runs twice as far ahead.  Each stage now works from its first action to its last without a
# gap, and the slant at the start returns at the end: the next step fits into it.  The price is
# 2 S − 1 activations on every stage.  ZB-V folds the model, two chunks to a stage, and needs only
# 1F1B's memory; DualPipeV is its relative that pairs forwards with backwards.
#
# ![ZB-H2: no stage waits once it has begun](zb-h2.svg)
# ![ZB-V: the same with 1F1B's memory](zb-v.svg)

for name in ("zb-h2", "zb-v", "dualpipe-v"):
    timeline = simulate(make(name, 4, 8))
    work = timeline.busy[0]
    once(comm, f"\n{name}: a stage idles for {timeline.span - work:.0f} of {timeline.span:.0f}")
    once(comm, draw(timeline, 112).plain)

# %% What W holds back
# B exchanges the cache of a micro-batch for what W needs: with the paper's sizes, 34 and 32 units.
# In those units, the most that each of four stages holds:

for name in ("1f1b", "zb-h1", "zb-h2"):
    orders = make(name, 4, 8).orders
    once(comm, f"    {name:6} {[int(in_flight(order, 34, 32).max()) for order in orders]}")

# %% The paper's own numbers
# Qi et al. 2023, Table 5 (bubble rates) follow from Table 9 (milliseconds of F, B, W and of a
# message), here for its 1.5B model on 8 stages with 24 micro-batches.

f, b, w, message = 18.522, 18.086, 9.337, 0.601
once(comm, "\nzero-bubble paper, 1.5B model     printed   computed")
for name, printed in (("1f1b", 0.2431), ("zb-h1", 0.1585), ("zb-h2", 0.1083)):
    timeline = simulate(make(name, 8, 24), {F: f, B: b, W: w, BW: b + w}, message)
    cost = timeline.span if name == "zb-h2" else timeline.makespan
    rate = 1 - 24 * (f + b + w) / cost
    once(comm, f"    {name:28} {printed:7.4f}   {rate:7.4f}")
    assert abs(rate - printed) < 2e-4

# %% On two ranks, for real
# Predicted: the simulator with the times that every action really took, and what messages took.
# Measured: from all ranks' clocks.  They agree where two cores have nothing else to do; with 20
# steps each: scripts/bench bubble.

model = ModelConfig(L=4, D=128, H=4, T=64)


def run(name, M):
    """Three steps of a schedule: predicted bubble, measured bubble, seconds; medians."""
    train = TrainConfig(global_batch=4 * M, init="random")
    trainer = Trainer(model, train, Layout(pp=2, schedule=name, microbatches=M), comm)
    steps = comm.bcast(measured.steps(trainer, warm_up=1, count=3))
    trainer.close()
    fed = [simulate(t.schedule, measured.action_times(t), measured.delays([t])) for t in steps]
    bubbles = (np.median([t.bubble for t in timelines]) for timelines in (fed, steps))
    return *bubbles, np.median([t.makespan for t in steps])


some = ("gpipe", "1f1b", "interleaved", "zb-h1")
table = {(name, m): run(name, m) for name in some for m in (2, 4, 8, 16)}
once(
    comm,
    "\nbubble, predicted / measured      M = 2           M = 4           M = 8          M = 16",
)
for name in some:
    cells = [f"{table[name, m][0]:6.1%} /{table[name, m][1]:6.1%}" for m in (2, 4, 8, 16)]
    once(comm, f"    {name:22} {'  '.join(cells)}")

# %% The table: bubble and memory
# "Equal times" is the prediction for F = B = W.  Activations are those of a whole stage.

once(comm, f"\n2 stages, {M} micro-batches           bubble                     step   held")
once(comm, "                equal times  predicted  measured")
for name in SCHEDULES:
    predicted, got, seconds = table.get((name, M)) or run(name, M)
    schedule = make(name, 2, M)
    held = max(map(peak_in_flight, schedule.orders)) / len(schedule.chunks_of(0))
    numbers = f"{simulate(schedule).bubble:10.1%} {predicted:10.1%} {got:9.1%}"
    once(comm, f"    {name:12}{numbers} {seconds:11.3f} s {held:6g}")

# %% Equal to serial
# B and W apart, in any order between micro-batches, are the same additions: the same bits.

train = TrainConfig(global_batch=4 * M, init="random")
tokens, targets = data.load().batch(0, train.global_batch, model.T, seed=0)
expected = loss_and_grads(initial_params(model, train), tokens, targets, M)
for name in ("zb-h1", "zb-h2", "zb-v", "dualpipe-v"):
    trainer = Trainer(model, train, Layout(pp=2, schedule=name, microbatches=M), comm)
    loss = comm.allreduce(trainer.forward_backward(tokens, targets))
    grads = trainer.grads()
    trainer.close()
    if grads is not None:
        true_loss, true = expected
        same = all(np.array_equal(grads[u][n], true[u][n]) for u in true for n in true[u])
        print(f"{name:12} loss {loss:.7f}, serial {true_loss:.7f}; gradients the same bits: {same}")
        assert same and loss == true_loss
