"""The verbs on device arrays: by each transport, what NumPy's arrays give, to the last bit."""

import os
import pickle
from functools import reduce

import numpy as np
import pytest
from mpitest import mpi, mpirun
from standin_cupy import CUPY
from test_cupy_layouts import MODEL, TRAIN, numpys, rows  # noqa: F401 (a fixture)

from tparallel.comm.axis import Axis
from tparallel.comm.cut import pieces
from tparallel.comm.ledger import Ledger
from tparallel.config import Layout
from tparallel.zero.precision import storage_dtype

TRANSPORTS = ("direct", "staged", "ipc")
DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "uint8")


def everybodys(shape, dtype, n):
    draw = [np.random.default_rng([r, *shape]).normal(size=shape) * 8 for r in range(n)]
    return [(x if "float" in dtype else abs(x)).astype(storage_dtype(dtype)) for x in draw]


def bits(x):
    return (x if isinstance(x, np.ndarray) else x.get()).tobytes()


def verbs_agree(axis, dtype):
    """Every verb once, on arrays of the device."""
    from tparallel.backend import xp

    n, r = axis.size, axis.rank
    for shape in [(2 * n, 3), (20_000 * n,)]:
        x = everybodys(shape, dtype, n)
        wide = [a.astype(np.float32) if a.dtype.itemsize == 2 else a for a in x]
        total, mine = reduce(np.add, wide).astype(x[0].dtype), xp.asarray(x[r])
        rows_of_sum = np.split(total, n)
        parts = np.concatenate([np.split(a, n)[r] for a in x])
        pending = axis.start_all_reduce(mine, what="x")
        late = axis.start_all_gather(mine, what="x")
        assert bits(pending.wait()) == bits(total)
        assert bits(late.wait()) == bits(np.concatenate(x))
        assert bits(axis.reduce_scatter(mine, what="x")) == bits(rows_of_sum[r])
        assert bits(axis.all_to_all(mine.reshape(n, -1), what="x")) == bits(parts)
        at_root = axis.reduce(mine, root=n - 1, what="x")
        assert at_root is None if r < n - 1 else bits(at_root) == bits(total)
        assert bits(axis.broadcast(mine.copy(), root=1, what="x")) == bits(x[1])
        sent = axis.send(mine, to=(r + 1) % n, tag=3, what="x")
        room = xp.empty(shape, mine.dtype)
        assert bits(axis.recv(room, source=(r - 1) % n, tag=3, what="x")) == bits(x[r - 1])
        sent.wait()
        assert bits(mine) == bits(x[r])


@pytest.mark.smoke
@mpi(3, timeout=60, env=CUPY, fresh=True)
def test_every_verb_by_every_transport_gives_numpys_bits(comm):
    """Small and large messages, started early and awaited late, pinned buffers used again."""
    for transport in TRANSPORTS:
        os.environ["TPARALLEL_TRANSPORT"] = transport
        axis = Axis("tp", comm.Dup(), Ledger())
        for dtype in DTYPES:
            verbs_agree(axis, dtype)
        axis.close()
    from tparallel.comm.staged import Staged

    made = len(Staged.pinned.free) + len(Staged.pinned.read_by_device)
    assert 0 < made < 12, "buffers are used again"


@mpi(2, timeout=60, env={**CUPY, "TPARALLEL_ALL_REDUCE": "ring"}, fresh=True)
def test_the_ring_works_on_device_arrays_by_every_transport(comm):
    """Its additions are kernels, its messages wait for them; half is added in float32."""
    from tparallel.backend import xp

    for transport in TRANSPORTS:
        os.environ["TPARALLEL_TRANSPORT"] = transport
        axis = Axis("tp", comm.Dup(), Ledger())
        for dtype in ("float64", "bfloat16"):
            x = everybodys((1001,), dtype, 2)
            total = axis.all_reduce(xp.asarray(x[axis.rank]), what="x").get().astype(np.float64)
            error = np.abs(total - (x[0].astype(np.float64) + x[1].astype(np.float64))).max()
            assert error <= (1e-14 if dtype == "float64" else 0.13)
        counts = pieces(1001, 2)
        assert axis.ledger.wire("tp") == (2 * 1001 - sum(counts)) * (8 + 2)
        axis.close()


@mpi(2, timeout=60, env=CUPY, fresh=True)
def test_layouts_by_ipc_find_numpys_gradients(comm, numpys):  # noqa: F811
    """Tensor parallel, a pipeline, ZeRO 3: each with windows in the others' memory."""
    from tparallel.compare.proof import BOUND, prove

    os.environ["TPARALLEL_TRANSPORT"] = "ipc"
    truth, _ = pickle.loads(numpys.read_bytes())
    for layout in (Layout(tp=2), Layout(pp=2, microbatches=2), Layout(dp=2, zero=3)):
        proof = prove(MODEL, TRAIN, layout, comm, rows(0), truth)
        assert proof is None or max(proof.loss, proof.norm, proof.gradient) <= BOUND, proof


def test_a_transport_that_cannot_be_is_refused():
    """An unknown one; another than direct for NumPy arrays."""
    for name, env in (("fast", CUPY), ("staged", {"TPARALLEL_BACKEND": "numpy"})):
        job = mpirun(1, "-m", "tparallel", "info", env={**env, "TPARALLEL_TRANSPORT": name})
        assert job.code == 2 and "TPARALLEL_TRANSPORT must be one of direct, staged" in job.out
