"""Is it equal?  Why loss curves do not prove it, how Adam hides a factor, and what to compare.

You will see three bugs that other people have shipped, each put into this program while it runs:
how little the loss curve shows of them, and which comparison finds each at once.  Then the same
comparisons without a bug: what "equal" looks like in numbers.

    mpirun -n 4 .venv/bin/python -m mpi4py tutorials/07_is_it_equal.py            (30 seconds)
"""

# %% The question
# A layout is a promise: the same training as on one process, only elsewhere.  How would you check
# it?  Most projects lay two loss curves over each other and look.  Let us try that.

import os

from tparallel import launch

launch.limit_threads(os.environ)

from mpi4py import MPI

from tparallel.compare.equality import worst_error
from tparallel.sabotage.bugs import BUGS
from tparallel.sabotage.curve import another_seed, moved
from tparallel.sabotage.examine import examine
from tparallel.sabotage.patch import applied, diff
from tparallel.tell import once
from tparallel.train import Trainer
from tparallel.verify.cases import case_of
from tparallel.verify.measure import measure
from tparallel.verify.pool import Pool
from tparallel.verify.reference import batches, serial

comm = MPI.COMM_WORLD
if comm.size != 4:
    raise SystemExit(
        f"the layouts here need four ranks; this job has {comm.size}. Use mpirun -n 4."
    )
STEPS = 30
THREE = ("pipeline-accumulation-scale", "norm-counts-replicas", "scale-root-d")

# %% Three bugs
# Each was found in a real program.  Shown are the lines that are exchanged, and only for as long
# as a block of this script says so: the modules do not know.

for name in THREE:
    once(comm, f"\n{name}: {BUGS[name].what}", *(f"    {line}" for line in diff(BUGS[name].edits)))

# %% What the loss curve shows
# Thirty steps of real training: AdamW, gradients clipped to a norm of one.  The yardstick is a
# second run *without* a bug that begins with other random numbers: a change that is smaller than
# that proves nothing.

curves = {}
with Pool(comm) as pool:
    if pool.leads:
        seed = pool.run(1, another_seed, STEPS)
        print(f"\nanother seed                   moves the curve by {seed.most:7.2%}")
        for name in THREE:
            ranks = case_of(BUGS[name].layout).layout.ranks
            curves[name] = pool.run(ranks, moved, BUGS[name], STEPS)
            print(f"{name:30} moves the curve by {curves[name].most:7.2%}")
        assert all(c.most < seed.most for c in curves.values())

# %% How Adam hides a factor
# AdamW divides the mean of the gradients by the root of the mean of their squares: multiply every
# gradient by four and the update is the same.  Gradient clipping to a norm hides a factor too.
# So compare gradients, *before* any optimizer has seen them; or train with plain SGD.

with Pool(comm) as pool:
    if pool.leads:
        bug = BUGS["pipeline-accumulation-scale"]
        answers = pool.run(2, examine, bug)
        print(f"\n{bug.name}: gradients of 4 micro-batches, each as if it were the whole batch")
        for check in ("loss", "gradients", "norm", "parameters"):
            a = answers[check]
            print(f"    {check:12} error {a.error:.0e}  {'equal' if a.holds else 'NOT equal'}")
        assert answers["loss"].holds and not answers["gradients"].holds
        assert answers["parameters"].error < 1e-4  # after clipping and AdamW: hardly a trace

# %% One number can be wrong alone
# What every tp rank holds (norms, biases of row-split layers) belongs into the gradient norm once.
# Counted tp times, loss and gradients are right to the last digit; only the norm is not, and with
# it the clipping.

with Pool(comm) as pool:
    if pool.leads:
        answers = pool.run(4, examine, BUGS["norm-counts-replicas"])
        red = [check for check, a in answers.items() if not a.holds]
        print(f"\nnorm-counts-replicas: not equal are {', '.join(red)}")
        assert answers["gradients"].holds and not answers["norm"].holds

# %% Equal to what?
# The third bug is in the serial program as well: scores divided by the root of the wrong size.
# Forward and backward agree with each other, every layout agrees with one process, and all are
# wrong.  Finite differences are satisfied.  Only a second text of the definition notices.

with Pool(comm) as pool:
    if pool.leads:
        answers = pool.run(1, examine, BUGS["scale-root-d"])
        print("\nscale-root-d")
        for check in ("slopes", "loss", "gradients", "norm", "definition"):
            a = answers[check]
            print(f"    {check:12} error {a.error:.0e}  {'holds' if a.holds else 'does NOT hold'}")
        assert answers["slopes"].holds and answers["gradients"].holds
        assert not answers["definition"].holds

# %% Where a wrong gradient sits
# A gradient of the whole model is not one number.  The error is taken tensor by tensor, relative
# to the tensor's own size, so that a small one is not hidden; its name says where to begin to look.

case = case_of({"tp": 2, "dp": 2, "optimizer": "sgd"})
with applied(BUGS["bias-times-tp"].edits):
    trainer = Trainer(case.model, case.train, case.layout, comm)
    trainer.forward_backward(*batches(case.model, case.train)[0])
    grads = trainer.grads()
    trainer.close()
if grads is not None:
    error, where = worst_error(grads, serial(case.model, case.train).gradients)
    print(f"\nbias-times-tp: the worst tensor is {where}, off by {error:.0%} of its size")
    assert error > 1e-3

# %% Equal to serial
# And this is what it looks like when nothing is broken: in float64, rounding and no more.  One
# layout here; ``tparallel verify`` asks for all of them, and ``tparallel sabotage`` shows that each
# of its questions can be answered with no.

answers = measure(comm, case)
once(comm, f"\n{case.layout.name}, nothing broken")
for quantity, a in answers.items():
    print(f"    {quantity:16} error {a.error:.0e}, at most {a.bound:.0e}")
    assert a.holds
