"""A schedule that cannot run is refused before any message exists, drawn, with the cell marked."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tparallel.errors import LayoutError, ScheduleError
from tparallel.pipeline_parallel import messages
from tparallel.pipeline_parallel.execute import Executor
from tparallel.pipeline_parallel.messages import check_blocking, check_messages
from tparallel.pipeline_parallel.program import RECEIVES, SENDS, programs
from tparallel.pipeline_parallel.schedule import F, schedule_of
from tparallel.pipeline_parallel.schedules import SCHEDULES, make
from tparallel.pipeline_parallel.text import parse, read, write
from tparallel.pipeline_parallel.validate import validate, validate_memory

# What somebody might write, what must be said, and the cells that must be marked.
WRONG = {
    "B before F": (
        "0F0 0BW0\n1BW0 1F0",
        "BW comes after F: stage 1 runs 1BW0 before 1F0. Exchange them.",
        (">1BW0<", ">1F0<"),
    ),
    "W before B": ("0F0 0W0 0B0\n1F0 1BW0", "W comes after B", (">0W0<", ">0B0<")),
    "B without W": ("0F0 0B0\n1F0 1BW0", "0B0 has no 0W0", (">0B0<",)),
    "W without B": ("0F0 0BW0\n1F0 1BW0 1W0", "joined or in halves, not both", (">1W0<",)),
    "no such forward": (
        "0F0 0BW0 0BW1\n1F0 1F1 1BW0 1BW1",
        "stage 1 waits at 1F1 for the activation of micro-batch 1, which stage 0 never sends",
        (">1F1<", ">?<"),
    ),
    "no such backward": (
        "0F0 0F1 0BW0 0BW1\n1F0 1F1 1BW0",
        "stage 0 waits at 0BW1 for the gradient of micro-batch 1, which stage 1 never sends",
        (">0BW1<", ">?<"),
    ),
    "twice": ("0F0 0F0 0BW0\n1F0 1BW0", "0F0 stands twice on stage 0", (">0F0<",)),
    "elsewhere": ("0F0 1F0\n1BW0 0BW0", "1BW0 stands on stage 1, chunk 1 lives on stage 0", ()),
    "a circle": (
        "0F0 0BW0 0F1 0BW1\n1F1 1BW1 1F0 1BW0",
        "stage 0 waits at 0BW0 for the gradient from stage 1; "
        "stage 1 waits at 1F1 for the activation from stage 0",
        (">0BW0<", ">1F1<"),
    ),
}


@pytest.mark.parametrize("text, reason, marked", WRONG.values(), ids=WRONG)
def test_a_schedule_that_cannot_run_is_refused_with_the_reason(text, reason, marked):
    """The reason in words, and the offending cells in the drawn grid."""
    schedule = parse(text, "mine.txt")
    with pytest.raises(ScheduleError) as error:
        validate(schedule)
    said, _, drawn = str(error.value).partition("\n\n")
    assert reason in said
    assert drawn.startswith("stage 0") and drawn.count("\n") == schedule.stages - 1
    assert all(cell in drawn for cell in marked), drawn


def test_of_a_large_schedule_what_is_near_the_mark_is_drawn():
    """A hundred stages: the rows and columns around the offending cell."""
    order = [make("1f1b", 100, 200).actions(s) for s in range(100)]
    order[50][30], order[50][31] = order[50][31], order[50][30]
    order[50].remove((F, 50, 40))
    with pytest.raises(ScheduleError, match="stage 51 waits at 51F40") as error:
        validate(schedule_of("large", 200, range(100), order))
    assert len(str(error.value).splitlines()) < 20
    assert max(map(len, str(error.value).splitlines()[1:])) < 200


def test_more_activations_than_allowed_are_refused():
    """GPipe holds all eight; the forward that is one too many is marked."""
    validate_memory(make("1f1b", 4, 8), 4)
    with pytest.raises(ScheduleError, match="with 0F4 stage 0 holds 5") as error:
        validate_memory(make("gpipe", 4, 8), 4)
    assert ">0F4<" in str(error.value)


def test_blocking_sends_would_deadlock_and_who_waits_for_whom_is_said():
    """1F1B: two neighbours send to each other at once, and unless something buffers, neither
    comes to its receive.  GPipe never does that."""
    check_blocking(make("gpipe", 4, 8))
    with pytest.raises(ScheduleError) as error:
        check_blocking(make("1f1b", 4, 8))
    assert "rank 2 at 2send_x1 for rank 3, rank 3 at 3send_dx0 for rank 2" in str(error.value)
    assert ">2F1<" in str(error.value) and ">3BW0<" in str(error.value)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("S, M", [(1, 2), (2, 3), (4, 8)])
def test_a_schedule_as_text_is_read_back_the_same(name, S, M):
    """``write``, then ``parse``: the same placement and orders."""
    schedule = make(name, S, M)
    again = parse(write(schedule), "again")
    assert again.placement == schedule.placement
    assert all((a == b).all() for a, b in zip(again.orders, schedule.orders, strict=True))


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "a row for every stage"),
        ("0F0 0X0", "line 1: '0X0' is none"),
        ("0F0 0BW0\n\n2F0 2BW0", "nothing for chunk 1"),
    ],
)
def test_text_that_is_no_schedule_is_refused(text, reason):
    """With the line, and an example of what is."""
    with pytest.raises(ScheduleError, match=reason):
        parse(text, "mine.txt")


def test_a_file_that_cannot_be_read_or_does_not_fit_is_refused(tmp_path):
    """No such file, not text, another size than the layout's."""
    with pytest.raises(ScheduleError, match="must be readable text"):
        read(str(tmp_path / "none.txt"))
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ScheduleError, match="must be readable text"):
        read(str(tmp_path / "bytes.txt"))
    (tmp_path / "mine.txt").write_text(write(make("1f1b", 2, 4)))
    make(str(tmp_path / "mine.txt"), 2, 4)
    with pytest.raises(LayoutError, match="has 2 stages and 4 micro-batches"):
        make(str(tmp_path / "mine.txt"), 2, 8)


class NoMPI:
    """Stands where the pipeline's axis stands; nothing may reach it."""

    rank = 0

    def __getattr__(self, name):
        raise AssertionError(f"{name} was reached")


@st.composite
def damaged(draw):
    """A schedule, and its programs with one message removed, two swapped, or one tag changed."""
    name = draw(st.sampled_from(list(SCHEDULES)))
    schedule = make(name, draw(st.integers(2, 4)), draw(st.integers(1, 5)))
    lists = [list(program) for program in programs(schedule)]
    at = [(s, k) for s, p in enumerate(lists) for k, i in enumerate(p) if i.op in SENDS + RECEIVES]
    s, k = draw(st.sampled_from(at))
    how = draw(st.sampled_from(["removed", "swapped", "tag", "peer"]))
    others = [j for stage, j in at if stage == s and j != k]
    if how == "removed" or (how == "swapped" and not others):
        del lists[s][k]
    elif how == "swapped":
        j = draw(st.sampled_from(others))
        lists[s][k], lists[s][j] = lists[s][j], lists[s][k]
    elif how == "tag":
        lists[s][k] = lists[s][k]._replace(tag=lists[s][k].tag + draw(st.integers(1, 9)))
    else:
        lists[s][k] = lists[s][k]._replace(peer=s)
    return schedule, [tuple(p) for p in lists]


@given(damaged())
def test_a_damaged_program_is_refused(case):
    """Whatever the schedule and the message: the other end would wait for ever, or misread."""
    schedule, lists = case
    check_messages(schedule, programs(schedule))
    with pytest.raises(ScheduleError, match="messages must meet"):
        check_messages(schedule, lists)


@given(damaged())
def test_a_damaged_program_never_reaches_mpi(case):
    """The executor asks first: no send, no receive, no computation."""
    schedule, lists = case
    executor = Executor({}, (None, None), NoMPI(), (), "float32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(messages, "programs", lambda schedule: lists)
        with pytest.raises(ScheduleError, match="messages must meet"):
            executor.run(schedule, [], [], 1)


def test_an_order_that_cannot_run_never_reaches_mpi():
    """A schedule made by hand is validated by whoever is to run it."""
    schedule = parse("0F0 0BW0 0F1 0BW1\n1F1 1BW1 1F0 1BW0", "mine.txt")
    executor = Executor({}, (None, None), NoMPI(), (), "float32")
    with pytest.raises(ScheduleError, match="wait in a circle"):
        executor.run(schedule, [], [], 1)
