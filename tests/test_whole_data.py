"""Tensor parallelism of whole data beside Megatron's: the same function, and what each costs."""

from functools import partial

import numpy as np
from groups import axes
from mpitest import mpi

from tparallel.compare.equality import relative_error, worst_error
from tparallel.compare.memory import nbytes
from tparallel.config import ModelConfig
from tparallel.serial import mlp as serial
from tparallel.serial.parameters import initial, prefixed, sub
from tparallel.tensor_parallel import mlp as cut
from tparallel.tensor_parallel import whole_data
from tparallel.tensor_parallel.region import TensorParallel
from tparallel.tensor_parallel.split import shard, unshard

MODEL = ModelConfig(L=1, D=24, H=4, T=6, V=5)
B = 2


def start():
    p = sub(initial(MODEL, "block.0", 0, "float64", "random"), "mlp.")
    rng = np.random.default_rng(1)
    x, dy = (rng.normal(size=(B, MODEL.T, MODEL.D)) for _ in range(2))
    return x, p, dy


def held(p, grads, cache):
    return nbytes(p) + nbytes(grads), nbytes(cache)


@mpi(2, 4)
def test_both_are_the_same_function(comm):
    """Output, dx and every gradient are serial's; the whole-data way has them whole on each rank,
    Megatron's in parts."""
    x, p, dy = start()
    y, cache = serial.mlp_forward(x, p)
    dx, grads = serial.mlp_backward(dy, cache, p)
    for axis in axes(comm, comm.size):
        our_y, cache = whole_data.mlp_forward(x, p, axis)
        our_dx, ours = whole_data.mlp_backward(dy, cache, p, axis)
        assert max(relative_error(our_y, y), relative_error(our_dx, dx)) <= 1e-12
        assert worst_error({"mlp": ours}, {"mlp": grads})[0] <= 1e-12
        tp, mine = (
            TensorParallel(axis),
            sub(shard(prefixed("mlp.", p), axis.rank, axis.size), "mlp."),
        )
        our_y, cache = cut.mlp_forward(x, mine, tp)
        our_dx, part = cut.mlp_backward(dy, cache, mine, tp)
        assert max(relative_error(our_y, y), relative_error(our_dx, dx)) <= 1e-12
        parts = [prefixed("mlp.", g) for g in axis._comm.allgather(part)]
        whole = unshard(parts, {f"mlp.{n}": g.shape for n, g in grads.items()})
        assert worst_error({"mlp": sub(whole, "mlp.")}, {"mlp": grads})[0] <= 1e-12


@mpi(2, 4)
def test_what_each_holds_and_sends(comm):
    """Whole data: every parameter, gradient and activation on every rank, and 2 R (F + D) + 2 D F
    elements gathered.  Megatron's: 1/n of what is cut, and two sums of R D."""
    n, (x, p, dy) = comm.size, start()
    R, D, F = B * MODEL.T, MODEL.D, MODEL.F
    ways = {
        "whole": (whole_data, p, partial),
        "cut": (cut, sub(shard(prefixed("mlp.", p), comm.rank, n), "mlp."), TensorParallel),
    }
    found = {}
    for axis in axes(comm, n):
        for name, (module, mine, region) in ways.items():
            axis.ledger.clear()
            tp = axis if region is partial else region(axis)
            _, cache = module.mlp_forward(x, mine, tp)
            _, grads = module.mlp_backward(dy, cache, mine, tp)
            found[name] = (*held(mine, grads, cache), axis.ledger.wire("tp"))
    parameters = 2 * D * F + F + D
    elements = {
        "whole": (2 * parameters, R * D + 2 * R * F, (n - 1) * (2 * R * (F + D) + 2 * D * F) // n),
        "cut": (2 * ((2 * D * F + F) // n + D), R * D + 2 * R * F // n, 4 * (n - 1) * R * D // n),
    }
    assert {k: tuple(8 * e for e in v) for k, v in elements.items()} == found
