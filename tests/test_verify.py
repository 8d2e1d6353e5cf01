"""The equivalence matrix: which cases it asks, that it agrees, and that it would notice."""

from itertools import chain, combinations, product

import numpy as np
import pytest
from mpitest import mpi

from tparallel.commands.verify import ask, report
from tparallel.config import replace
from tparallel.verify import bounds, cases
from tparallel.verify.measure import measure
from tparallel.verify.pool import Pool
from tparallel.verify.seen import errors


def _agree(comm, todo):
    with Pool(comm) as pool:
        if pool.leads:
            assert report(ask(pool, todo)) == 0


@mpi(4, timeout=120)
def test_every_pair_of_factors_agrees_with_one_process(comm):
    """Loss, gradients, norm, parameters, optimizer state, validation: float64, on up to 4 ranks."""
    _agree(comm, cases.covering_cases(4))


@pytest.mark.slow
@mpi(2, timeout=120)
def test_float32_stays_within_its_derived_bound(comm):
    """Parameters under SGD, against float64: condition × γ_n."""
    _agree(comm, cases.covering_cases(2, cases.SINGLE))


@pytest.mark.matrix
@mpi(8, timeout=1800)
def test_every_layout_up_to_eight_ranks_agrees_with_one_process(comm):
    """The whole matrix, float64 and float32."""
    _agree(comm, cases.every_case(8) + cases.covering_cases(8, cases.SINGLE))


def test_every_legal_layout_is_among_the_cases():
    """No product of tp, pp, dp, ZeRO stage and schedule is left out."""
    have = {tuple((a, getattr(c.layout, a)) for a in cases.AXES) for c in cases.every_case(8)}
    assert have == {tuple(axes.items()) for axes in cases.layouts(8)}


def test_any_two_values_meet_in_some_case():
    """Every pair of values that any legal case on two ranks has is a pair of some chosen case."""
    chosen = set(chain(*(combinations(case.row, 2) for case in cases.covering_cases(2))))
    shapes = cases.layouts(2)
    for axes in shapes[:: len(shapes) // 4]:
        start = tuple((axis, str(value)) for axis, value in axes.items())
        for values in product(*cases.FACTORS.values()):
            settings = dict(axes)
            for factor, value in zip(cases.FACTORS, values):
                settings |= cases.FACTORS[factor][value]
            row = start + tuple(zip(cases.FACTORS, values))
            if not set(combinations(row, 2)) <= chosen:
                assert cases.case_of(settings) is None, row


def test_the_command_of_a_case_describes_it():
    """What is printed for a failed case names every field that differs from the default."""
    case = cases.case_of({"tp": 2, "dp": 2, "zero": 1, "tied": True})
    words = case.command.split()
    assert words[:2] == ["tparallel", "verify"] and "--tied" in words
    for flag, value in (("--tp", "2"), ("--zero", "1"), ("--V", "37"), ("--dtype", "float64")):
        assert words[words.index(flag) + 1] == value


@mpi(2)
def test_a_wrong_answer_does_not_hold(comm):
    """A gradient that is off by 1e-9 of its size is outside the bound."""
    case = cases.case_of({"tp": 2})
    answers = measure(comm, case)
    if comm.rank == 0:
        assert all(a.holds for a in answers.values())
        wrong = answers["gradients"]._replace(error=1e-9)
        assert not wrong.holds


def test_a_case_that_should_clip_and_does_not_is_an_error():
    """A comparison "with clipping" that never clips would prove nothing."""
    from tparallel.errors import ConfigError
    from tparallel.verify.measure import compare
    from tparallel.verify.reference import serial

    case = cases.case_of({"clip": 1e9})
    truth = serial(case.model, case.train)
    with pytest.raises(ConfigError, match="must clip"):
        compare(case, truth, truth)


def test_every_quantity_notices_its_own_change():
    """A change of one number in one quantity is seen in that quantity and in no other."""
    from tparallel.verify.reference import serial

    case = cases.case_of({})
    truth = serial(case.model, case.train)

    def nudged(tree):
        return {
            layer: {n: a + 1e-6 * (layer == "block.0") * (n == "mlp.w_in") for n, a in p.items()}
            for layer, p in tree.items()
        }

    state = truth.optimizer_state
    changed = {
        "loss": truth._replace(loss=truth.loss + 1e-6),
        "gradients": truth._replace(gradients=nudged(truth.gradients)),
        "norm": truth._replace(norm=truth.norm + 1e-6),
        "parameters": truth._replace(parameters=nudged(truth.parameters)),
        "optimizer state": truth._replace(optimizer_state=(state[0], nudged(state[1]))),
        "validation loss": truth._replace(validation_loss=truth.validation_loss + 1e-6),
    }
    for quantity, wrong in changed.items():
        found = {q: error for q, (error, _) in errors(wrong, truth).items()}
        assert found.pop(quantity) > 1e-9
        assert set(found.values()) == {0.0}


def test_the_float32_bound_is_near_what_float32_does():
    """A serial run in float32 is inside its bound, and the bound is not a thousand times too wide
    for the parameters: it could not hide an error of a part in ten thousand."""
    from tparallel.serial.train import initial_params, loss_and_grads
    from tparallel.verify.reference import batches, serial

    case = cases.case_of(cases.SINGLE)
    rows = batches(case.model, case.train)
    _, grads = loss_and_grads(initial_params(case.model, case.train), *rows[0])
    truth = serial(case.model, case.train)
    error = errors(truth._replace(gradients=grads), truth)["gradients"][0]
    allowed = bounds.bound("gradients", case.model, case.train)
    assert np.finfo("float32").eps / 10 < error < allowed < min(1000 * error, 1e-4)


def test_float64_bounds_are_the_promised_ones():
    """1e-12 for all but what AdamW has divided: 1e-10."""
    case = cases.case_of({})
    for optimizer in ("sgd", "adamw"):
        train = replace(case.train, optimizer=optimizer)
        for quantity in ("loss", "gradients", "norm", "validation loss"):
            assert bounds.bound(quantity, case.model, train) == 1e-12
    assert bounds.bound("parameters", case.model, replace(train, optimizer="sgd")) == 1e-12
    assert bounds.bound("parameters", case.model, train) == 1e-10
