"""Tensor parallel: several ranks compute one layer, from a single product to a whole transformer.

You will see one matrix product cut by columns, then by rows; the MLP with one sum; attention by
heads; why the backward of a copy is a sum; and sequence parallelism, which is the same layer with
another pair of functions at its border.  Every step prints shapes as each rank sees them, the
bytes it sends, and its error against serial.  Two ranks do as well as four.

    mpirun -n 4 .venv/bin/python -m mpi4py tutorials/03_tensor_parallel.py       (5 seconds)
"""

# %% The question
# How is *one layer* computed?  Each rank holds a part of every matrix and computes a part of every
# product.  Where a partial result is needed whole, bytes move; the art is to need it rarely.

import os

from tparallel import launch

launch.limit_threads(os.environ)

import numpy as np
from mpi4py import MPI

from tparallel.comm.mesh import Mesh
from tparallel.compare.equality import relative_error, worst_error
from tparallel.compare.memory import nbytes
from tparallel.config import Layout, ModelConfig, TrainConfig
from tparallel.serial import attention, mlp
from tparallel.serial.parameters import initial, sub
from tparallel.serial.train import initial_params, loss_and_grads
from tparallel.tell import everyone, once
from tparallel.tensor_parallel import attention as cut_attention
from tparallel.tensor_parallel import mlp as cut_mlp
from tparallel.tensor_parallel import whole_data
from tparallel.tensor_parallel.region import SequenceParallel, TensorParallel
from tparallel.tensor_parallel.split import part, shard
from tparallel.train import Trainer

comm = MPI.COMM_WORLD
n = comm.size
if n not in (2, 4):
    raise SystemExit(f"four heads are cut over 2 or 4 ranks; this job has {n}. Use mpirun -n 4.")
mesh = Mesh(Layout(tp=n), comm)
axis, ledger = mesh.tp, mesh.ledger
B, model = 2, ModelConfig(L=2, D=32, H=4, T=16, V=61)
rng = np.random.default_rng(0)
x, dy = (rng.normal(size=(B, model.T, model.D)) for _ in range(2))
p = initial(model, "block.0", 0, "float64", "random")  # the same on every rank: by name


def report(step: str, error: float, **arrays) -> None:
    """Each rank's shapes and bytes since the last report; the largest error of any rank."""
    once(comm, f"\n{step}")
    seen = "  ".join(f"{name} {a.shape}" for name, a in arrays.items())
    everyone(comm, f"{seen}   sends {ledger.wire('tp'):,} bytes")
    worst = comm.allreduce(float(error), MPI.MAX)
    once(comm, f"largest error against serial: {worst:.0e}")
    assert worst < 1e-12
    ledger.clear()


# %% One product, cut by columns
# y = x W.  A rank with some columns of W computes the same columns of y, from all of x.  Nothing
# is sent: y is simply in parts.  (An activation function, entry by entry, may follow right there.)

w = p["mlp.w_in"]
columns = part(model.F, axis.rank, n)
y = x @ w[:, columns]
error = relative_error(y, (x @ w)[..., columns])
report("y = x W, W cut by columns", error, W=w[:, columns], y=y)

# %% One product, cut by rows
# A rank with some rows of W needs only the same columns of x, and computes a y of full size that
# is a part of a *sum*: the inner dim was cut.  One all_reduce finishes it.

w = p["mlp.w_out"]
a = rng.normal(size=(B, model.T, model.F))  # the input of this product, whole
rows = part(model.F, axis.rank, n)
partial = a[..., rows] @ w[rows]
y = axis.all_reduce(partial, what="y")
report("y = a W, W cut by rows", relative_error(y, a @ w), W=w[rows], y=y)

# %% The MLP: columns, then rows, and one sum
# The columns of the first product are just the inner dim of the second one.  So nothing moves
# between them, and one sum of B T D numbers is left, however wide F is.  The bias of the second
# product is added after the sum: before it, it would count n times.

tp = TensorParallel(axis)
whole, mine = sub(p, "mlp."), sub(shard(p, axis.rank, n), "mlp.")
y, cache = cut_mlp.mlp_forward(x, mine, tp)
true_y, true_cache = mlp.mlp_forward(x, whole)
error = relative_error(y, true_y)
report("mlp forward", error, W_in=mine["w_in"], W_out=mine["w_out"], y=y)

# %% Attention: by heads
# A head needs no other head.  Each rank takes some of them: columns of W_q and W_kv, rows of
# W_out.  Again one sum.

heads = sub(shard(p, axis.rank, n), "attn.")
y, _ = cut_attention.attention_forward(x, heads, tp)
true_y, _ = attention.attention_forward(x, sub(p, "attn."))
error = relative_error(y, true_y)
report("attention forward", error, W_q=heads["w_q"], W_out=heads["w_out"], y=y)

# %% Why is the backward of a copy a sum?
# x enters n ranks: y_r = f_r(x), and the loss depends on all of them.  The chain rule adds up all
# the ways in which x acts, so dx = dx_0 + dx_1 + ...: each rank has one term.  The other way
# round, y = y_0 + y_1 + ... gives every term the gradient dy as it is: the backward of a sum is a
# copy.  Megatron calls the pair f (copy, then sum) and g (sum, then copy); here they are
# ``tp.enter`` and ``tp.leave`` (tensor_parallel/region.py).

terms = rng.normal(size=(n, B, model.T, model.D))  # the gradient that each rank's branch returns
dx = tp.enter_backward(terms[axis.rank], what="dx").wait()
report("backward of a copy", relative_error(dx, terms.sum(0)), dx=dx)
dx, grads = cut_mlp.mlp_backward(dy, cache, mine, tp)
true_dx, true_grads = mlp.mlp_backward(dy, true_cache, whole)
error = max(relative_error(dx, true_dx), relative_error(grads["w_out"], true_grads["w_out"][rows]))
report("mlp backward", error, dx=dx, dW_out=grads["w_out"])

# %% The simplest way, beside it
# One may also leave all data whole on every rank, and let each compute some columns: then every
# product is gathered, the weights' gradients too, and no memory is saved.

y, whole_cache = whole_data.mlp_forward(x, whole, axis)
dx, whole_grads = whole_data.mlp_backward(dy, whole_cache, whole, axis)
report("mlp, whole data", relative_error(dx, true_dx), y=y, dW_in=whole_grads["w_in"])
held = {"whole data": (whole, whole_grads, whole_cache), "Megatron's": (mine, grads, cache)}
for name, (weights, gradients, kept) in held.items():
    once(comm, f"{name:11} rank 0 holds {nbytes(weights, gradients):7,} + {nbytes(kept):7,} bytes")

# %% Sequence parallelism: the same layer, another border
# Norms and residuals were computed by every rank, for all tokens.  Let each hold T/n of them: then
# f gathers tokens, g leaves each rank its tokens' sums.  An all_reduce *is* a reduce_scatter and an
# all_gather, so the bytes are the same; the memory outside the layer falls to 1/n.

sp = SequenceParallel(axis)
tokens = sp.tokens(model.T)
y, cache = cut_mlp.mlp_forward(x[:, tokens], mine, sp)
dx, grads = cut_mlp.mlp_backward(dy[:, tokens], cache, mine, sp)
error = relative_error(dx, true_dx[:, tokens])
report("mlp, sequence parallel, forward and backward", error, y=y, dx=dx)

# %% The whole transformer
# Embedding and loss are cut by the vocabulary, 61 rows over n ranks; full logits exist nowhere.
# Below, what a training step sends for activations, for each way, and its gradients against serial.

train = TrainConfig(dtype="float64", init="random", global_batch=B)
ids, targets = rng.integers(0, model.V, (2, B, model.T))
_, serial_grads = loss_and_grads(initial_params(model, train), ids, targets)
once(comm)
for way in ("", "keep", "regather"):
    trainer = Trainer(model, train, Layout(tp=n, sp=way), comm)
    trainer.forward_backward(ids, targets)
    whole_grads, by_reason = trainer.grads(), trainer.mesh.ledger.totals.items()
    norms = sum(t.wire for k, t in by_reason if k.what == "norm grads")
    sent = trainer.mesh.ledger.wire("tp") - norms
    name = f"sp={way}" if way else "plain"
    line = f"{name:12} rank 0 sends {sent:7,} bytes, and {norms:5,} for gradients of norms"
    if whole_grads is not None:
        error, worst = worst_error(whole_grads, serial_grads)
        print(f"{line}; worst gradient error {error:.0e} ({worst})", flush=True)
        assert error < 1e-12
    trainer.close()
mesh.close()
