"""Each schedule in virtual time: that it runs, its bubble, what it holds, against published forms.

F, B, W are the times of a forward and of the two halves of backward of one chunk; "idle" is what
the makespan has over a stage's own work.
"""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tparallel.pipeline_parallel.draw import draw
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
from tparallel.pipeline_parallel.timeline import critical_path
from tparallel.pipeline_parallel.validate import validate

TIMES = [(1, 1, 1), (1.0, 1.1, 1.0), (1.0, 1.2, 0.8), (1.1, 1.3, 0.6)]


def run(name, S, M, times=(1, 1, 1), v=0, delay=0.0):
    f, b, w = times
    return simulate(make(name, S, M, v), {F: f, B: b, W: w, BW: b + w}, delay)


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


def by_recursion(schedule, cost, delay):
    """The end of every action, by following what it needs: a second, slower way."""
    before, ends = {}, {}
    for s in range(schedule.stages):
        actions = schedule.actions(s)
        before |= dict(zip(actions[1:], actions))

    def end(action):
        if action not in ends:
            op, chunk, m = action
            earliest = [end(before[action]) if action in before else 0.0]
            step = {F: -1, B: +1, BW: +1}.get(op, 0)
            if step and 0 <= chunk + step < schedule.chunks:
                ops = (F,) if op == F else (B, BW)
                here, there = schedule.placement[chunk], schedule.placement[chunk + step]
                made = [a for a in known if a[0] in ops and a[1:] == (chunk + step, m)]
                earliest.append(end(made[0]) + delay * (here != there))
            ends[action] = max(earliest) + cost[op]
        return ends[action]

    known = [a for s in range(schedule.stages) for a in schedule.actions(s)]
    return {a: end(a) for a in known}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(list(SCHEDULES)),
    st.integers(1, 4),
    st.integers(1, 6),
    st.tuples(*[st.floats(0.1, 3)] * 3),
    st.floats(0, 2),
)
def test_the_simulator_agrees_with_a_recursion(name, S, M, times, delay):
    """Every end of every action, for any times and any delay of a message."""
    f, b, w = times
    cost = {F: f, B: b, W: w, BW: b + w}
    timeline = simulate(make(name, S, M), cost, delay)
    ends = by_recursion(timeline.schedule, cost, delay)
    for s in range(S):
        expected = [ends[a] for a in timeline.schedule.actions(s)]
        assert timeline.end[s] == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(list(SCHEDULES)), st.integers(1, 5), st.integers(1, 9), st.floats(0, 1))
def test_the_critical_path_explains_the_whole_makespan(name, S, M, delay):
    """Its actions and the messages between them, laid end to end, are as long as the step."""
    timeline = run(name, S, M, (1.0, 1.25, 0.75), delay=delay)
    path, length, last = critical_path(timeline), 0.0, None
    for stage, k in path:
        length += timeline.end[stage][k] - timeline.start[stage][k]
        length += delay * (last is not None and last != stage)
        last = stage
    assert length == pytest.approx(timeline.makespan)


LARGE = """
import resource, time
from tparallel.pipeline_parallel.schedules import make
from tparallel.pipeline_parallel.simulate import simulate
begun = time.process_time()
timeline = simulate(make("1f1b", 1024, 4096))
seconds = time.process_time() - begun
print(timeline.makespan, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_a_thousand_stages_are_simulated_in_seconds():
    """1,024 stages and 4,096 micro-batches of 1F1B, 8.4 million actions: at most 30 s and 2 GB."""
    out = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True)
    makespan, seconds, kilobytes = map(float, out.stdout.split())
    assert makespan == 3 * (4096 + 1023)
    assert seconds < 30
    assert kilobytes < 2e6


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


def test_a_message_that_takes_time_makes_the_pipeline_wait_for_it():
    """By hand: two stages, one micro-batch, two messages of 0.5 on the way."""
    assert simulate(make("gpipe", 2, 1), delay=0.5).makespan == 1 + 0.5 + 1 + 2 + 0.5 + 2


def test_a_drawing_shows_when_each_stage_does_what():
    """1F1B, GPipe and ZB-H1, to the letter; with room for names, and without."""
    assert draw(simulate(make("1f1b", 4, 4)), 35).plain.splitlines() == [
        "stage 0 0123......aa.bb.cc.dd",
        "stage 1 .012....aa3bb.cc.dd..",
        "stage 2 ..01..aa2bb3cc.dd....",
        "stage 3 ...0aa1bb2cc3dd......",
    ]
    assert draw(simulate(make("gpipe", 3, 2)), 60).plain.splitlines() == [
        "stage 0 F0  F1  ........................BW0     BW1     ",
        "stage 1 ....F0  F1  ............BW0     BW1     ........",
        "stage 2 ........F0  F1  BW0     BW1     ................",
    ]
    assert draw(simulate(make("zb-h1", 2, 2)), 22).plain.splitlines() == [
        "stage 0 F0F1..B0W0B1W1",
        "stage 1 ..F0B0F1B1W0W1",
    ]
