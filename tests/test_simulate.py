"""A schedule in virtual time: the simulator, its critical path and its drawing."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tparallel.pipeline_parallel.draw import draw
from tparallel.pipeline_parallel.schedule import BW, B, F, W
from tparallel.pipeline_parallel.schedules import SCHEDULES, make
from tparallel.pipeline_parallel.simulate import simulate
from tparallel.pipeline_parallel.timeline import critical_path


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
    cost = {F: 1.0, B: 1.25, W: 0.75, BW: 2.0}
    timeline = simulate(make(name, S, M), cost, delay)
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
