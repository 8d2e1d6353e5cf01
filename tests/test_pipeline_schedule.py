"""Schedules as data: complete, as good as the formula says, paired message by message; and the
broken ones refused, with the stage and the action."""

from itertools import product

import pytest

from tparallel.errors import ScheduleError
from tparallel.pipeline_parallel.draw import draw
from tparallel.pipeline_parallel.program import partner, programs
from tparallel.pipeline_parallel.schedule import (
    BW,
    Action,
    B,
    F,
    Schedule,
    W,
    forward_only,
    make,
    peak_in_flight,
)
from tparallel.pipeline_parallel.simulate import bubble, makespan, simulate

GRID = list(product(range(1, 7), range(1, 10)))  # stages S, micro-batches M; M < S among them
IN_FLIGHT = {"gpipe": lambda s, S, M: M, "1f1b": lambda s, S, M: min(M, S - s)}
each_schedule = pytest.mark.parametrize("name", IN_FLIGHT)


def order(text):
    """``"F0 F1 BW0.2"`` -> actions; the number after the dot is the chunk, if it is not 0."""
    out = []
    for word in text.split():
        op = word.rstrip("0123456789.")
        m, _, chunk = word[len(op) :].partition(".")
        out.append(Action(op, int(chunk or 0), int(m)))
    return tuple(out)


@each_schedule
def test_the_bubble_is_s_minus_1_over_m_plus_s_minus_1(name):
    """With backward twice as long as forward, a pass takes 3 (M + S − 1), for every S and M."""
    for S, M in GRID:
        events = simulate(make(name, S, M))
        assert makespan(events) == 3 * (M + S - 1)
        assert bubble(events, S) == pytest.approx((S - 1) / (M + S - 1), abs=1e-12)


@each_schedule
def test_every_stage_computes_every_micro_batch_once_forward_and_once_backward(name):
    """Counted, not trusted to the check that the simulation makes."""
    for S, M in GRID:
        for stage, actions in enumerate(make(name, S, M).orders):
            want = [Action(op, stage, m) for op in (BW, F) for m in range(M)]
            assert sorted(actions) == sorted(want)


@each_schedule
def test_micro_batches_in_flight_are_all_for_gpipe_and_at_most_s_minus_stage_for_1f1b(name):
    """What decides how many caches a stage must hold."""
    for S, M in GRID:
        for stage, actions in enumerate(make(name, S, M).orders):
            assert peak_in_flight(actions) == IN_FLIGHT[name](stage, S, M)


@each_schedule
def test_every_send_meets_one_receive_and_every_receive_one_send(name):
    """Activations and their gradients, once per micro-batch and boundary: 2 M (S − 1) messages."""
    for S, M in GRID:
        for schedule in (make(name, S, M), forward_only(S, M)):
            todo = programs(schedule)
            sends = [(s, i) for s, p in enumerate(todo) for i in p if i.op.startswith("send")]
            receives = [(s, *i[:3]) for s, p in enumerate(todo) for i in p if "recv" in i.op]
            assert sorted(partner(i, stage) for stage, i in sends) == sorted(receives)
            assert len(set(receives)) == len(receives)
            assert len(receives) == M * (S - 1) * (1 if schedule.name == "forward" else 2)
            for stage, i in sends:  # the receiver, too, knows who sends
                (met,) = [j for j in todo[i.peer] if (i.peer, *j[:3]) == partner(i, stage)]
                assert met.peer == stage


def test_1f1b_with_sends_that_block_deadlocks_and_both_sides_are_named():
    """Small messages hide it: MPI buffers them.  GPipe's neighbours never send to each other."""
    for S, M in GRID:
        simulate(make("gpipe", S, M), buffered=False)
    simulate(make("1f1b", 4, 1), buffered=False)
    with pytest.raises(ScheduleError) as refused:
        simulate(make("1f1b", 4, 4), buffered=False)
    said = str(refused.value)
    assert "stage 2 waits at send_x 1" in said and "stage 3 waits at send_dx 0" in said
    assert "Isend" in said


ALONE = {
    "a forward is missing": ("BW0 F1 BW1", "BW 0 comes after 'nothing'"),
    "backward comes before forward": ("F0 BW1 BW0 F1", "BW 1 comes after 'nothing'"),
    "a forward comes twice": ("F0 F0 BW0 F1 BW1", "F 0 comes after 'F'"),
    "a backward comes twice": ("F0 BW0 BW0 F1 BW1", "BW 0 comes after 'FBW'"),
    "weights come before the input's gradient": ("F0 W0 B0 F1 BW1", "W 0 comes after 'F'"),
    "a micro-batch never goes backward": ("F0 F1 BW0", "micro-batch 1 of chunk 0 1 and 0 times"),
    "weights' gradients are missing": ("F0 B0 F1 BW1", "micro-batch 0 of chunk 0 1 and 0 times"),
    "a micro-batch is missing": ("F0 BW0", "micro-batch 1 of chunk 0 0 and 0 times"),
    "there is no such micro-batch": ("F0 BW0 F1 BW1 F2 BW2", "F 2 of chunk 0 on stage 0"),
    "there is no such chunk": ("F0 BW0 F1 BW1 F0.1 BW0.1", "F 0 of chunk 1 on stage 0"),
}


@pytest.mark.parametrize("what", ALONE)
def test_a_broken_order_is_refused_with_the_action(what):
    """One stage, two micro-batches."""
    text, said = ALONE[what]
    with pytest.raises(ScheduleError, match=said):
        simulate(Schedule("broken", 2, (0,), (order(text),)))


def test_a_chunk_on_a_stage_where_it_is_not_placed_is_refused():
    """Its parameters would not be there."""
    swapped = make("gpipe", 2, 1)
    with pytest.raises(ScheduleError, match="F 0 stands on stage 0, chunk 1 on stage 1"):
        simulate(Schedule("swapped", 1, (0, 1), swapped.orders[::-1]))


def test_stages_that_wait_for_each_other_are_a_deadlock_with_any_send():
    """Stage 0 wants a gradient first that stage 1 makes only after its next input."""
    orders = (order("F0 BW0 F1 BW1"), order("F0.1 F1.1 BW0.1 BW1.1"))
    with pytest.raises(
        ScheduleError, match="stage 0 waits at recv_dx 0; stage 1 waits at recv_x 1"
    ):
        simulate(Schedule("mutual", 2, (0, 1), orders))


def test_two_chunks_of_one_stage_hand_over_in_order_and_without_a_message():
    """Placement is data: here two chunks live on one stage."""
    right = Schedule("pair", 1, (0, 0), (order("F0 F0.1 B0.1 B0 W0.1 W0"),))
    assert [e.instruction.op for e in simulate(right)] == [F, F, B, B, W, W]
    for wrong in ("F0.1 F0 B0.1 B0 W0 W0.1", "F0 F0.1 B0 B0.1 W0 W0.1"):
        with pytest.raises(ScheduleError, match="comes before that of chunk"):
            simulate(Schedule("pair", 1, (0, 0), (order(wrong),)))


def test_a_message_that_takes_time_makes_the_pipeline_wait_for_it():
    """By hand: two stages, one micro-batch, two messages of 0.5 on the way."""
    events = simulate(make("gpipe", 2, 1), delay=0.5)
    assert makespan(events) == 1 + 0.5 + 1 + 2 + 0.5 + 2


def test_a_drawing_shows_when_each_stage_does_what():
    """1F1B on four stages, and GPipe on three: what a reader meets, to the letter."""
    assert draw(simulate(make("1f1b", 4, 4)), 4).splitlines() == [
        "stage 0  0123......aa.bb.cc.dd",
        "stage 1  .012....aa3bb.cc.dd..",
        "stage 2  ..01..aa2bb3cc.dd....",
        "stage 3  ...0aa1bb2cc3dd......",
    ]
    assert draw(simulate(make("gpipe", 3, 2)), 3).splitlines() == [
        "stage 0  01......aabb",
        "stage 1  .01...aabb..",
        "stage 2  ..01aabb....",
    ]
    split = Schedule("split", 1, (0,), (order("F0 B0 W0"),))
    assert draw(simulate(split), 1) == "stage 0  0aA"
