"""Rank <-> (dp, pp, tp).  ``tp`` varies fastest: its messages are the most frequent, so its ranks
should be the nearest neighbours, on one node.

Source: Narayanan et al. 2021, section 3 (takeaway 1); the order is Megatron-LM's.
"""

from typing import NamedTuple

from mpi4py import MPI

from ..backend import use_local_device
from ..config import Layout
from .axis import Axis
from .board import Board
from .checked import wanted
from .ledger import Ledger
from .link import Link
from .transport import cores

AXES = ("dp", "pp", "tp")


class Coords(NamedTuple):
    dp: int
    pp: int
    tp: int


def coords(rank: int, layout: Layout) -> Coords:
    """Where a rank stands on each axis."""
    rest, tp = divmod(rank, layout.tp)
    dp, pp = divmod(rest, layout.pp)
    return Coords(dp, pp, tp)


def rank_of(c: Coords, layout: Layout) -> int:
    return (c.dp * layout.pp + c.pp) * layout.tp + c.tp


class Mesh:
    """This rank's three axes, and the ledger that they share.

    ``ends`` joins the stages of the first and the last chunk, for what both hold (tied
    embeddings); it is counted as part of ``pp``, and None on other stages.  They are the first and
    the last stage unless ``ends`` says otherwise: one and the same where the pipeline is folded.

    ``near`` and ``far`` are the two factors of dp where ZeRO works in groups: the ranks of this
    rank's group, and the ranks that stand at the same place in the other groups.
    """

    def __init__(self, layout: Layout, comm, link: Link | None = None, ends=None):
        if comm.size != layout.ranks:
            raise ValueError(f"{layout} needs {layout.ranks} ranks, got {comm.size}")
        self.layout, self.comm, self.ledger = layout, comm, Ledger()
        self.coords = here = coords(comm.rank, layout)
        node = comm.Split_type(MPI.COMM_TYPE_SHARED)
        use_local_device(node.rank, node.size)
        crowded = node.size > cores()
        node.Free()
        self._board = Board(comm) if wanted() and comm.size > 1 else None
        shared = self.ledger, crowded, link, self._board
        for axis in AXES:
            ring = rank_of(here._replace(**{axis: 0}), layout)  # the same number all along it
            part = comm.Split(color=ring, key=getattr(here, axis))
            setattr(self, axis, Axis(axis, part, *shared))
        self.near = self.far = None
        if layout.shard_group:
            group, place = divmod(here.dp, layout.shard_group)
            for axis, dp in (("near", group * layout.shard_group), ("far", place)):
                part = comm.Split(color=rank_of(here._replace(dp=dp), layout), key=here.dp)
                setattr(self, axis, Axis(axis, part, *shared))
        ends = ends or (0, layout.pp - 1)
        ring = rank_of(here._replace(pp=ends[0]), layout) if here.pp in ends else MPI.UNDEFINED
        part = comm.Split(color=ring, key=here.pp)
        self.ends = Axis("pp", part, *shared) if here.pp in ends else None

    dp: Axis
    pp: Axis
    tp: Axis
    near: Axis | None
    far: Axis | None

    def close(self) -> None:
        for axis in (self.dp, self.pp, self.tp, self.ends, self.near, self.far):
            if axis is not None:
                axis.close()
        if self._board:
            self._board.close()
