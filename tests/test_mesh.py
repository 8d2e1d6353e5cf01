"""Ranks and their places: a bijection, groups that are right, communicators that are given back."""

from itertools import product

import numpy as np
import pytest
from mpitest import mpi

from tparallel.comm.mesh import AXES, Mesh, coords, rank_of
from tparallel.config import Layout

# The world ranks of every group, by hand.
CUBE = {
    "tp": [[0, 1], [2, 3], [4, 5], [6, 7]],
    "pp": [[0, 2], [1, 3], [4, 6], [5, 7]],
    "dp": [[0, 4], [1, 5], [2, 6], [3, 7]],
    "ends": [[0, 2], [1, 3], [4, 6], [5, 7]],
}
PIPES = {
    "tp": [[0], [1], [2], [3], [4], [5]],
    "pp": [[0, 1, 2], [3, 4, 5]],
    "dp": [[0, 3], [1, 4], [2, 5]],
    "ends": [[0, 2], [3, 5]],
}


def test_every_rank_has_one_place_and_every_place_one_rank():
    """rank_of undoes coords, and tp varies fastest, then pp, then dp."""
    for dp, pp, tp in product((1, 2, 3), repeat=3):
        layout = Layout(tp=tp, pp=pp, dp=dp)
        places = [coords(rank, layout) for rank in range(layout.ranks)]
        assert places == list(product(range(dp), range(pp), range(tp)))
        assert [rank_of(place, layout) for place in places] == list(range(layout.ranks))


def check_groups(comm, layout, groups):
    mesh = Mesh(layout, comm)
    for name, rings in groups.items():
        axis = getattr(mesh, name)
        mine = [ring for ring in rings if comm.rank in ring]
        if not mine:
            assert axis is None, name
            continue
        (ring,) = mine
        members = axis.all_gather(np.array([comm.rank]), what="members")
        assert members.tolist() == ring, name
        assert (axis.rank, axis.size) == (ring.index(comm.rank), len(ring))
        assert axis.ledger is mesh.ledger
    assert [getattr(mesh, name).name for name in AXES] == list(AXES)
    assert mesh.ends is None or mesh.ends.name == "pp"  # its bytes are the pipeline's
    mesh.close()


@mpi(8)
def test_a_cube_has_four_groups_along_each_axis(comm):
    """2 × 2 × 2: who is whose neighbour, and in which order."""
    check_groups(comm, Layout(tp=2, pp=2, dp=2), CUBE)


@mpi(6)
def test_first_and_last_stage_meet_and_the_ones_between_do_not(comm):
    """pp = 3, dp = 2: ``ends`` joins what may share a table."""
    check_groups(comm, Layout(pp=3, dp=2), PIPES)
    with pytest.raises(ValueError, match="needs 4 ranks, got 6"):
        Mesh(Layout(tp=4), comm)


@mpi(2, timeout=90)
def test_more_meshes_than_mpi_has_communicators_fit_one_after_the_other(comm):
    """close() gives every one of them back: MPICH has room for some two thousand."""
    for _ in range(2100):
        Mesh(Layout(tp=2), comm).close()
