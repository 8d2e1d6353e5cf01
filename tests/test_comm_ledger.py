"""The ledger: every verb's payload and wire bytes as whole numbers, from the sizes alone."""

import numpy as np
from groups import axes
from mpitest import mpi

from tparallel.comm.axis import Axis
from tparallel.comm.ledger import Key, Ledger

N = 7  # elements: no group size divides it
F8 = 8  # bytes of a float64


class CountingComm:
    """A communicator that counts the bytes that are handed to MPI for other ranks."""

    def __init__(self, comm):
        self.comm, self.sent = comm, 0

    def __getattr__(self, name):
        return getattr(self.comm, name)

    def Isend(self, x, to, tag):
        self.sent += x.nbytes
        return self.comm.Isend(x, to, tag)

    def Ibcast(self, x, root):
        self.sent += (self.comm.size - 1) * x.nbytes * (root == self.comm.rank)
        return self.comm.Ibcast(x, root)


def every_verb(axis):
    """Each verb once.  Returns {verb: (payload, wire)} by the table in comm/axis.py."""
    n, r = axis.size, axis.rank
    piece = N // n + (r < N % n)
    axis.all_reduce(np.zeros(N), what="x")
    axis.reduce_scatter(np.zeros((n, N)), what="x")
    axis.all_gather(np.zeros((N, 1)), what="x")
    axis.broadcast(np.zeros(N), root=n - 1, what="x")
    message = axis.send(np.zeros(N), to=(r + 1) % n, tag=0, what="x")
    axis.recv(np.zeros(N), source=(r - 1) % n, tag=0, what="x")
    message.wait()
    return {
        "all_reduce": (N * F8, (N - piece + (n - 1) * piece) * F8),
        "reduce_scatter": (n * N * F8, (n - 1) * N * F8),
        "all_gather": (n * N * F8, (n - 1) * N * F8),
        "broadcast": (N * F8, (n - 1) * N * F8 if r == n - 1 else 0),
        "send": (N * F8, N * F8),
        "recv": (N * F8, 0),
    }


@mpi(3)
def test_payload_and_wire_are_the_tables_whole_numbers_on_every_rank(comm):
    """For 2 and 3 ranks, and a size that neither of them divides."""
    for axis in axes(comm, 2, 3, name="pp"):
        want = every_verb(axis)
        got = {key: (t.payload, t.wire) for key, t in axis.ledger.totals.items()}
        assert got == {Key("pp", op, "x"): numbers for op, numbers in want.items()}
        assert all(type(t.wire) is int for t in axis.ledger.totals.values())
        assert axis.ledger.wire("pp") == sum(wire for _, wire in want.values())
        assert axis.ledger.wire("dp") == 0


@mpi(3)
def test_wire_is_what_mpi_was_really_given_for_other_ranks(comm):
    """Counted a second time, at the calls into MPI."""
    counting = CountingComm(comm)
    axis = Axis("tp", counting, Ledger())
    every_verb(axis)
    assert counting.sent == axis.ledger.wire("tp") > 0


@mpi(2)
def test_a_division_without_rest_moves_two_times_n_minus_1_over_n(comm):
    """The number of the papers: all_reduce of b bytes sends 2 (n−1)/n b from every rank."""
    for axis in axes(comm, 2):
        axis.all_reduce(np.zeros((5, 8), np.float32), what="x")
        assert axis.ledger.wire("tp") == 2 * 1 / 2 * 5 * 8 * 4


@mpi(2)
def test_the_ledger_keeps_one_line_per_reason_however_many_steps(comm):
    """Counts, bytes and seconds add up; nothing else grows."""
    for axis in axes(comm, 2):
        every_verb(axis)
        once = {key: (t.payload, t.wire) for key, t in axis.ledger.totals.items()}
        for _ in range(9):
            every_verb(axis)
        for key, total in axis.ledger.totals.items():
            assert (total.payload, total.wire) == tuple(10 * v for v in once[key])
            assert total.count == 10 and total.seconds > 0
        assert axis.ledger.totals.keys() == once.keys()
        assert axis.ledger.events is None
        axis.ledger.clear()
        assert not axis.ledger.totals


@mpi(2)
def test_a_closed_ledger_records_nothing_and_opens_again(comm):
    """What a measurement itself moves is left out, also when the measurement fails."""
    for axis in axes(comm, 2):
        try:
            with axis.ledger.closed():
                every_verb(axis)
                with axis.ledger.closed():
                    every_verb(axis)
                every_verb(axis)
                raise KeyError
        except KeyError:
            pass
        assert axis.ledger.totals == {} and axis.ledger.seconds == 0
        every_verb(axis)
        assert len(axis.ledger.totals) == 6


@mpi(1)
def test_a_group_of_one_moves_nothing(comm):
    """At size 1 every verb copies, and the ledger stays empty."""
    for axis in axes(comm, 1):
        for verb in (axis.all_reduce, axis.reduce_scatter, axis.all_gather):
            verb(np.zeros(3), what="x")
        axis.broadcast(np.zeros(3), root=0, what="x")
        assert axis.ledger.totals == {}
