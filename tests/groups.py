"""Several group sizes in one job: starting ranks is what a small test spends its time on."""

from collections.abc import Iterator

from tparallel.comm.axis import Axis
from tparallel.comm.ledger import Ledger


def groups(comm, *sizes: int) -> Iterator:
    """For each size in turn, this rank's communicator of that many ranks.

    As many groups of a size work side by side as fit; a rank that is left over goes on at once.
    """
    for size in sizes:
        part = comm.Split(comm.rank // size, comm.rank)
        if part.size == size:
            yield part
        part.Free()


def axes(comm, *sizes: int, name: str = "tp") -> Iterator[Axis]:
    """For each size in turn, an axis of that many ranks, with a ledger of its own."""
    for part in groups(comm, *sizes):
        axis = Axis(name, part.Dup(), Ledger())
        yield axis
        axis.close()
