"""Each verb against NumPy: what it returns, on which ranks, to the last bit, and what it leaves."""

from functools import reduce

import numpy as np
import pytest
from groups import axes
from mpitest import mpi

from tparallel.comm.axis import Axis
from tparallel.comm.cut import pieces
from tparallel.comm.ledger import Ledger
from tparallel.zero.precision import storage_dtype

SHAPES = [(), (1,), (2,), (3,), (5,), (0,), (7, 3), (2, 0, 3), (4, 1, 6), (1000,), (40_001,)]
DTYPES = ["float64", "float32", "int32", "int64", "uint8"]


def everybodys(shape, dtype, n):
    """One array per rank, of very different sizes, so that the order of a sum shows."""
    out = []
    for r in range(n):
        rng = np.random.default_rng([r, *shape])
        x = rng.normal(size=shape) * 10.0 ** rng.integers(-3, 4, shape)
        out.append(np.asarray(x if dtype.startswith("float") else abs(x) % 50).astype(dtype))
    return out


def equal_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.smoke
@mpi(4)
def test_all_reduce_is_the_sum_in_rank_order_to_the_last_bit_on_every_rank(comm):
    """((x₀ + x₁) + x₂) + x₃ and max, for any size: 0-d, empty, fewer elements than ranks."""
    for axis in axes(comm, 1, 2, 3, 4):
        for dtype in DTYPES:
            for shape in SHAPES:
                x = everybodys(shape, dtype, axis.size)
                for op, rule in (("sum", np.add), ("max", np.maximum)):
                    got = axis.all_reduce(x[axis.rank], what="x", op=op)
                    assert equal_bits(got, np.asarray(reduce(rule, x))), (dtype, shape, op)


def test_the_order_of_the_sum_shows_in_these_numbers():
    """Backwards, the same numbers give other bits: the test above can tell the orders apart."""
    x = everybodys((1000,), "float64", 3)
    assert not equal_bits(reduce(np.add, x), reduce(np.add, x[::-1]))


@mpi(3)
def test_reduce_scatter_gives_rank_r_part_r_of_the_same_sum(comm):
    """Bit for bit the part that all_reduce would have given, along dim 0."""
    for axis in axes(comm, 1, 2, 3):
        n = axis.size
        for dtype in DTYPES:
            for shape in [(n,), (0, 3), (n, 0), (5 * n, 3), (2 * n, 1, 4)]:
                x = everybodys(shape, dtype, n)
                rows = shape[0] // n
                want = reduce(np.add, x)[axis.rank * rows : (axis.rank + 1) * rows]
                assert equal_bits(axis.reduce_scatter(x[axis.rank], what="x"), want), (dtype, shape)
        if n > 1:
            with pytest.raises(ValueError, match="equal parts"):
                axis.reduce_scatter(np.ones(n + 1), what="x")


@mpi(3)
def test_all_gather_lays_the_ranks_arrays_end_to_end(comm):
    """np.concatenate along dim 0, in rank order, on every rank."""
    for axis in axes(comm, 1, 2, 3):
        n = axis.size
        for dtype in DTYPES:
            for shape in [(1,), (0, 3), (3, 0), (5, 3), (2, 1, 4)]:
                x = everybodys(shape, dtype, n)
                got = axis.all_gather(x[axis.rank], what="x")
                assert equal_bits(got, np.concatenate(x)), (dtype, shape)


@mpi(3)
def test_broadcast_writes_the_roots_array_into_everybodys(comm):
    """From any root, of any size; the array that is returned is the one that was given."""
    for axis in axes(comm, 1, 2, 3):
        n = axis.size
        for root in range(n):
            for shape in [(), (0,), (5,), (2, 3)]:
                x = everybodys(shape, "float64", n)
                mine = x[axis.rank].copy()
                assert axis.broadcast(mine, root=root, what="x") is mine
                assert equal_bits(mine, x[root]), (root, shape)


@mpi(3)
def test_messages_are_told_apart_by_their_tags(comm):
    """Around the ring, received in the other order than sent; sends do not block."""
    for axis in axes(comm, 2, 3):
        n = axis.size
        x = everybodys((50_000,), "float32", 2 * n)  # too large for MPI to buffer
        to, source = (axis.rank + 1) % n, (axis.rank - 1) % n
        sent = [axis.send(x[2 * axis.rank + tag], to=to, tag=tag, what="x") for tag in (0, 1)]
        for tag in (1, 0):
            room = np.empty_like(x[0])
            assert axis.recv(room, source=source, tag=tag, what="x") is room
            assert equal_bits(room, x[2 * source + tag])
        for message in sent:
            message.wait()


@mpi(3)
def test_a_result_never_shares_memory_with_its_input_or_with_a_later_result(comm):
    """At size 1 too: an alias that appears only there would be an error of that layout alone."""
    for axis in axes(comm, 1, 2, 3):
        n = axis.size
        x = np.arange(4.0 * n).reshape(2 * n, 2) + axis.rank
        before = x.copy()
        verbs = (axis.all_reduce, axis.reduce_scatter, axis.all_gather)
        results = [verb(x, what="x") for verb in verbs]
        kept = [r.copy() for r in results]
        for verb in verbs:
            verb(x + 1, what="x")
        assert equal_bits(x, before)
        for i, (result, copy) in enumerate(zip(results, kept)):
            assert equal_bits(result, copy)
            assert not any(np.shares_memory(result, other) for other in [x, *results[:i]])


@mpi(3)
def test_out_is_written_and_returned_and_must_fit(comm):
    """A persistent buffer; all_reduce may even be given its own input."""
    for axis in axes(comm, 1, 2, 3):
        n = axis.size
        x = everybodys((5, 2), "float64", n)
        total, row = reduce(np.add, x), np.concatenate(x)
        for verb, want in ((axis.all_reduce, total), (axis.all_gather, row)):
            out = np.full(want.shape, np.nan)
            assert verb(x[axis.rank], what="x", out=out) is out
            assert equal_bits(out, want)
            for wrong in (np.empty(want.size + 1), np.empty(want.shape, "float32")):
                with pytest.raises(ValueError, match="out must be like the result"):
                    verb(x[axis.rank], what="x", out=wrong)
            if n > 1:
                with pytest.raises(ValueError, match="C-contiguous"):
                    verb(x[axis.rank], what="x", out=np.empty(want.shape, order="F"))
        for shape in ((5, 2), (7, 6001)):  # short, and long enough to be cut
            x = everybodys(shape, "float64", n)
            mine = x[axis.rank].copy()
            axis.all_reduce(mine, what="x", out=mine)
            assert equal_bits(mine, reduce(np.add, x))


@mpi(2)
def test_what_mpi_would_deliver_wrongly_is_refused(comm):
    """Fortran order would arrive transposed, truth values have no sum: an error, by name."""
    axis = Axis("tp", comm, Ledger())
    dtypes = [np.complex128, np.bool_, np.int16]
    cases = [(np.ones((4, 6)).T, ValueError, "C-contiguous"), (np.ones(8)[::2], ValueError, "C-c")]
    cases += [(np.ones((400, 600)).T, ValueError, "C-c")]  # long enough for all_reduce to cut it
    cases += [(np.ones(4, d), TypeError, np.dtype(d).name) for d in dtypes]
    for x, error, text in cases:
        for call in (
            lambda x: axis.all_reduce(x, what="x"),
            lambda x: axis.reduce_scatter(x, what="x"),
            lambda x: axis.all_gather(x, what="x"),
            lambda x: axis.broadcast(x, root=0, what="x"),
            lambda x: axis.send(x, to=1 - axis.rank, tag=0, what="x"),
            lambda x: axis.recv(x, source=1 - axis.rank, tag=0, what="x"),
        ):
            with pytest.raises(error, match=text):
                call(x)


@pytest.mark.smoke
@mpi(4, timeout=60)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_summed_in_float32_and_rounded_once(comm, dtype):
    """Σ over ranks in rank order in float32, then one rounding; moved values keep their bits.

    1 + 2⁻⁸ + 2⁻⁸ is 1 in bfloat16 if every addition rounds, and 1 + 2⁻⁷ if only the sum does; Open
    MPI's own sum would add bytes: 1.5 + 1.5 = 1.7e38.
    """
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    half = storage_dtype(dtype)
    small = 2.0**-8 if dtype == "bfloat16" else 2.0**-11
    for axis in axes(comm, 1, 2, 3, 4):
        n = axis.size
        rng, k = np.random.default_rng(0), 70_000  # elements a rank: all_reduce cuts them
        x = rng.normal(size=(n, k * n)).astype(half)
        x[:, 0] = [1.0] + [small] * (n - 1)
        exact = reduce(np.add, x.astype(np.float32)).astype(half)
        assert exact[0] == half.type(1.0 + (n - 1) * small) or n == 2  # 2: a tie, to even
        mine = x[axis.rank]
        for got, want in (
            (axis.all_reduce(mine, what="x"), exact),
            (axis.all_reduce(mine[:3], what="x"), exact[:3]),
            (axis.reduce_scatter(mine, what="x"), exact.reshape(n, k)[axis.rank]),
            (axis.all_gather(mine[:k], what="x"), x[:, :k].reshape(-1)),
        ):
            assert got.dtype == half
            assert equal_bits(got.view(np.uint16), want.view(np.uint16))
        piece = 3 // n + (axis.rank < 3 % n) if n > 1 else 0
        short = 3 + (n - 2) * piece if n > 1 else 0
        assert axis.ledger.wire("tp") == 2 * (4 * (n - 1) * k + short)


def test_pieces_are_as_equal_as_can_be_and_the_longer_ones_come_first():
    """They cover the vector, and differ by one at most."""
    for size in range(12):
        for n in range(1, 7):
            cut = pieces(size, n)
            assert sum(cut) == size and len(cut) == n
            assert max(cut) - min(cut) <= 1
            assert cut == sorted(cut, reverse=True)
