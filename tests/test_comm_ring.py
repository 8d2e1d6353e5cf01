"""The ring all-reduce: the sum within rounding, the same bits everywhere, and its bytes."""

from functools import reduce

import numpy as np
import pytest
from groups import groups
from mpitest import mpi

from tparallel.comm.axis import Axis
from tparallel.comm.cut import pieces
from tparallel.comm.ledger import Ledger
from tparallel.zero.precision import storage_dtype

RING = {"TPARALLEL_ALL_REDUCE": "ring"}


class Counting:
    """A communicator that counts the bytes of messages, its duplicates' too."""

    def __init__(self, comm, sent=None):
        self.comm, self.sent = comm, [0] if sent is None else sent

    def __getattr__(self, name):
        return getattr(self.comm, name)

    def Dup(self):
        return Counting(self.comm.Dup(), self.sent)

    def Isend(self, x, to, tag):
        self.sent[0] += x.nbytes
        return self.comm.Isend(x, to, tag)


def axes(comm, *sizes):
    for part in groups(comm, *sizes):
        counting = Counting(part.Dup())
        axis = Axis("tp", counting, Ledger())
        axis._checker = None  # whose statements are messages too
        yield axis, counting
        axis.close()


@mpi(4, env={**RING, "TPARALLEL_CHECK": "0"})
def test_the_ring_gives_the_sum_and_the_ledger_knows_its_bytes(comm):
    """n = 2, 3, 4, sizes that n does not divide, into itself or elsewhere, sum and maximum."""
    for axis, counting in axes(comm, 2, 3, 4):
        n, r, wire = axis.size, axis.rank, 0
        for size in (0, 1, 2, 5, 12, 1000):
            x = [np.random.default_rng([k, size]).normal(size=size) for k in range(n)]
            mine, counts = x[r].copy(), pieces(size, n)
            total, most = axis.all_reduce(mine, what="x"), axis.all_reduce(mine, what="x", op="max")
            assert np.array_equal(mine, x[r]) and not np.shares_memory(mine, total)
            assert np.abs(total - sum(x)).max(initial=0) <= 1e-14
            assert np.array_equal(most, reduce(np.maximum, x)) if size else not most.size
            axis.all_reduce(mine, what="x", out=mine)
            assert np.array_equal(mine, total)
            everyone = axis._comm.comm.allgather(total.tobytes())
            assert len(set(everyone)) == 1, "every rank has the same bits"
            wire += 3 * 8 * (2 * size - counts[(r + 1) % n] - counts[(r + 2) % n])
        assert axis.ledger.wire("tp") == counting.sent[0] == wire


@mpi(3, env={**RING, "TPARALLEL_CHECK": "0"})
def test_half_precision_goes_around_as_numbers_not_as_bytes(comm):
    """1.5 + 1.5 + 1.5 = 4.5, in both halves."""
    for axis, _ in axes(comm, 3):
        for dtype in ("float16", "bfloat16"):
            if dtype == "bfloat16":
                pytest.importorskip("ml_dtypes")
            x = np.full(7, 1.5).astype(storage_dtype(dtype))
            total = axis.all_reduce(x, what="x")
            assert total.dtype == x.dtype and (total.astype(np.float32) == 4.5).all()


@mpi(4, timeout=60, env=RING)
def test_layouts_train_alike_with_the_ring(comm):
    """Sums over tp, over dp, and of what ends share; with overlap."""
    from layout_cases import MODEL, TRAIN, assert_equal, errors

    from tparallel.config import Layout

    for layout in (Layout(tp=4), Layout(tp=2, dp=2, microbatches=2), Layout(tp=2, pp=2)):
        assert_equal(errors(MODEL, TRAIN, layout, comm), "adamw", layout.name)
