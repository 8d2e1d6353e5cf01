"""Layouts that nobody has thought of: equal to one process, or refused with a working way out."""

import random

import pytest
from mpitest import mpi

from tparallel.errors import TParallelError
from tparallel.verify.cases import FIXED, configs
from tparallel.verify.pool import Pool
from tparallel.verify.random_layouts import DRAWN, accepted, advised, problem, search


def _drawn(seed):
    rng = random.Random(seed)
    values = FIXED | {name: rng.choice(choices) for name, choices in DRAWN.items()}
    return values | {"D": values["H"] * values["K"]}


def test_every_refusal_says_a_way_out_and_following_it_ends_at_a_legal_layout():
    """Five hundred draws, nearly all refused at first."""
    refused = 0
    for seed in range(500):
        values = _drawn(seed)
        try:
            configs(values)
        except TParallelError:
            refused += 1
            accepted(values)
    assert refused > 400


def test_a_refusal_without_a_way_out_is_a_failure():
    """The follower is not made happy by any sentence."""
    for said in ("this cannot be. Use something else.", "no."):
        with pytest.raises(LookupError, match="no way out"):
            advised(_drawn(0), said, 0)


@mpi(4, timeout=120)
def test_thirty_random_cases_equal_one_process_or_are_refused_alike(comm):
    """The first of those that ``tparallel verify --random`` draws."""
    with Pool(comm) as pool:
        if pool.leads:
            assert search(pool, 30, 4) == ""


@pytest.mark.matrix
@mpi(8, timeout=1800)
def test_five_hundred_random_cases(comm):
    """The whole search, up to eight ranks."""
    with Pool(comm) as pool:
        if pool.leads:
            assert search(pool, 500, 8) == ""


@mpi(2)
def test_a_case_that_differs_is_reported_as_one_command(comm):
    """Put a bug in: what is found names the quantity and how to ask again."""
    from tparallel.sabotage.bugs import BUGS
    from tparallel.sabotage.patch import applied

    with applied(BUGS["bias-times-tp"].edits), Pool(comm) as pool:
        if pool.leads:
            values = {name: choices[0] for name, choices in DRAWN.items()}
            values |= {"tp": 2, "H": 2, "L": 2, "T": 8, "V": 37, "init": "random"}
            found = problem(pool, values, 4)
            assert "tparallel verify --tp 2" in found and "gradients differs by" in found
