"""Each schedule in virtual time: that it runs, its bubble, what it holds, against published forms.

F, B, W are the times of a forward and of the two halves of backward of one chunk; "idle" is what
the makespan has over a stage's own work.
"""

from itertools import pairwise

import numpy as np
import pytest

from tparallel.pipeline_parallel.program import RECEIVES, SENDS, programs
from tparallel.pipeline_parallel.schedule import (
    BW,
    B,
    F,
    W,
    forward_only,
    peak_in_flight,
    schedule_of,
)
from tparallel.pipeline_parallel.schedules import SCHEDULES, make
from tparallel.pipeline_parallel.simulate import simulate
from tparallel.pipeline_parallel.validate import validate

TIMES = [(1, 1, 1), (1.0, 1.1, 1.0), (1.0, 1.2, 0.8), (1.1, 1.3, 0.6)]


def run(name, S, M, times=(1, 1, 1), v=0):
    f, b, w = times
    return simulate(make(name, S, M, v), {F: f, B: b, W: w, BW: b + w})


def idle(timeline, times, of="makespan"):
    work = sum(times) * timeline.schedule.microbatches * len(timeline.schedule.chunks_of(0))
    return getattr(timeline, of) - work


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_runs_to_its_end_at_every_size(name):
    """Any number of stages and micro-batches, fewer micro-batches than stages included."""
    for v in (2, 3) if name == "interleaved" else (0,):
        for S in range(1, 7):
            for M in range(1, 14):
                validate(make(name, S, M, v))


@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
@pytest.mark.parametrize("S, M", [(2, 1), (4, 8), (8, 64), (5, 3)])
def test_gpipe_and_1f1b_idle_for_s_minus_1_micro_batches(name, S, M):
    """(S − 1)/(M + S − 1) of the time (Huang et al. 2019, section 2.3); (S − 1)/M of the ideal time
    (Narayanan et al. 2021, section 2.2.1): 7/64 for 8 stages and 64 micro-batches."""
    times = (1.0, 1.3, 0.9)
    timeline = run(name, S, M, times)
    assert timeline.bubble == pytest.approx((S - 1) / (M + S - 1))
    assert idle(timeline, times) / (M * sum(times)) == pytest.approx((S - 1) / M)


def test_naive_works_on_one_stage_at_a_time():
    """The makespan is the whole work, of all stages, one after the other."""
    assert run("naive", 4, 8).makespan == 4 * 8 * 3
    assert run("naive", 4, 8).bubble == pytest.approx(3 / 4)


@pytest.mark.parametrize("S, M, v", [(4, 8, 2), (2, 4, 3), (8, 32, 4)])
def test_interleaving_divides_the_bubble_by_the_chunks(S, M, v):
    """(S − 1)/(v M) of the ideal time, a chunk's times being 1/v of a stage's: Narayanan et al.
    2021, section 2.2.2."""
    timeline = run("interleaved", S, M, (1 / v, 1 / v, 1 / v), v)
    assert idle(timeline, (1 / v, 1 / v, 1 / v)) / (3 * M) == pytest.approx((S - 1) / (v * M))


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("S, M", [(4, 8), (8, 24)])
def test_the_bubbles_of_the_zero_bubble_paper(times, S, M):
    """Table 2 of Qi et al. 2023: 1F1B (S−1)(F+B+W), ZB-H1 (S−1)(F+B−W), ZB-H2 (S−1)(F+B−2W).  A
    step of ZB-H2 is as long as one stage takes from its first action to its last: the next step
    begins on the first stage while the last ones still compute weight gradients."""
    f, b, w = times
    assert idle(run("1f1b", S, M, times), times) == pytest.approx((S - 1) * (f + b + w))
    assert idle(run("zb-h1", S, M, times), times) == pytest.approx((S - 1) * (f + b - w))
    h2 = idle(run("zb-h2", S, M, times), times, of="span")
    assert h2 == pytest.approx((S - 1) * (f + b - 2 * w))


@pytest.mark.parametrize("S, M", [(2, 6), (4, 8), (8, 24)])
def test_zb_v_has_no_bubble_where_f_b_and_w_are_equal(S, M):
    """Qi et al. 2023, section 6, with the memory of 1F1B's first stage on every stage."""
    timeline = run("zb-v", S, M)
    assert idle(timeline, (1, 1, 1), of="span") == 0
    half_of_a_stage = 2
    assert [peak_in_flight(o) for o in timeline.schedule.orders] == [half_of_a_stage * S] * S


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("S", [2, 4, 8])
def test_dualpipe_v_has_the_published_bubble(times, S):
    """(S−1)(FB + B − 3W), B the whole backward, if a forward and a backward run as one unit FB that
    gives both results at its end (DeepSeek-AI 2024, table 2, for 2S chunks).  Here they run one
    after the other, and what comes first is sent first: the bubble is smaller."""
    f, b, w = times
    published = (S - 1) * (f + 2 * (b + w) - 3 * w)
    timeline = run("dualpipe-v", S, 4 * S, times)
    assert 0 < idle(timeline, times) < published
    as_units = simulate(*units(timeline.schedule, {F: f, B: b, W: w, BW: b + w}))
    assert idle(as_units, times) == pytest.approx(published)


def units(schedule, cost):
    """A forward and a backward of the two chunks, side by side, as one action: the backward
    takes the time of both, and the forward none, directly after it."""
    shape = (schedule.chunks, schedule.microbatches)
    costs = {op: np.full(shape, float(seconds)) for op, seconds in cost.items()}
    orders = []
    for stage in range(schedule.stages):
        actions = schedule.actions(stage)
        for k, (one, two) in enumerate(pairwise(list(actions))):
            if (one.op, two.op) == (F, BW) and one.chunk != two.chunk:
                actions[k : k + 2] = two, one
                costs[BW][two[1:]] += costs[F][one[1:]]
                costs[F][one[1:]] = 0
        orders.append(actions)
    return schedule_of("units", schedule.microbatches, schedule.placement, orders), costs


IN_FLIGHT = {
    "naive": lambda S, M, s: 1,
    "gpipe": lambda S, M, s: M,
    "1f1b": lambda S, M, s: min(M, S - s),
    "zb-h1": lambda S, M, s: min(M, S),
    "zb-h2": lambda S, M, s: min(M, 2 * S - 1),
    "zb-v": lambda S, M, s: 2 * S if M >= 2 * S else None,
    "dualpipe-v": lambda S, M, s: 2 * S + 1 if M >= 2 * S else None,
    "interleaved": lambda S, M, s: 2 * (S - s) - 1 + S if M >= 2 * S and M % S == 0 else None,
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("S, M", [(2, 1), (2, 4), (4, 2), (4, 8), (4, 9), (8, 24)])
def test_what_each_stage_holds_has_a_closed_form(name, S, M):
    """Activations of a chunk, on stage s: 1F1B min(M, S−s), ZB-H1 S, ZB-H2 2S−1 (Qi et al. 2023,
    table 2), interleaved S(v+1) − 1 − 2s (Narayanan et al. 2021, section 2.2.2), ZB-V 2S halves,
    DualPipeV 2S + 1 (DeepSeek-AI 2024, table 2: PP + 1)."""
    for s, order in enumerate(make(name, S, M).orders):
        expected = IN_FLIGHT[name](S, M, s)
        assert expected is None or peak_in_flight(order) == expected


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_stage_computes_every_micro_batch_once_forward_and_once_backward(name):
    """Counted, not trusted to the check: F once, and either BW or both of B and W."""
    for S, M in [(1, 3), (2, 5), (4, 3), (5, 8)]:
        schedule = make(name, S, M)
        for stage in range(S):
            done = sorted((chunk, m, op) for op, chunk, m in schedule.actions(stage))
            for chunk in schedule.chunks_of(stage):
                for m in range(M):
                    ops = [op for c, k, op in done if (c, k) == (chunk, m)]
                    assert ops in ([F, B, W], [F, BW])
            assert {c for c, _, _ in done} == set(schedule.chunks_of(stage))


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_send_meets_one_receive(name):
    """Activations and their gradients, once per micro-batch and boundary between stages; the tag
    tells each from every other message between the same two stages."""
    for S, M in [(2, 5), (4, 3), (5, 8)]:
        for schedule in (make(name, S, M), forward_only(make(name, S, M))):
            todo = programs(schedule)
            sends = [(s, i.peer, i.tag) for s, p in enumerate(todo) for i in p if i.op in SENDS]
            receives = [
                (i.peer, s, i.tag) for s, p in enumerate(todo) for i in p if i.op in RECEIVES
            ]
            assert sorted(sends) == sorted(set(receives)) == sorted(receives)
            hops = sum(a != b for a, b in pairwise(schedule.placement))
            assert len(sends) == M * hops * (1 if schedule.is_forward_only() else 2)
