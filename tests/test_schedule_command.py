"""``tparallel schedule``: what it prints, writes and refuses; and the clocks of a measured run."""

import json
import time
from xml.etree import ElementTree

import numpy as np
import pytest
from mpitest import mpi, mpirun

from tparallel import cli
from tparallel.config import Layout, ModelConfig, TrainConfig
from tparallel.pipeline_parallel import measured
from tparallel.pipeline_parallel.program import SENDS, programs
from tparallel.pipeline_parallel.schedule import BW, F
from tparallel.pipeline_parallel.schedules import SCHEDULES, make
from tparallel.pipeline_parallel.simulate import simulate
from tparallel.pipeline_parallel.svg import svg
from tparallel.pipeline_parallel.text import write
from tparallel.pipeline_parallel.trace import trace
from tparallel.train import Trainer

SVG = "{http://www.w3.org/2000/svg}"
RUN = "-m tparallel schedule zb-h1 --stages 2 --microbatches 4 --run"


def test_the_grid_and_its_figures_are_printed(capsys, monkeypatch):
    """1F1B on four stages: the picture, the makespan and bubble of the formula, what is held."""
    monkeypatch.setenv("COLUMNS", "120")
    assert cli.main(["schedule", "1f1b", "--stages", "4", "--microbatches", "8"]) == 0
    said = capsys.readouterr().out
    assert "stage 3 .........F0 BW0   F1 BW1   F2" in said
    assert "makespan       33" in said and "bubble         27.3%" in said
    assert "by stage 4 3 2 1" in said and "critical path  0F0 ... 0BW7" in said


def test_costs_and_messages_change_the_figures(capsys):
    """Table 5 of the zero-bubble paper, 1.5B and 24 micro-batches, as one command."""
    options = "--stages 8 --microbatches 24 --cost F=18.522,B=18.086,W=9.337 --delay 0.601"
    assert cli.main(["schedule", "1f1b", *options.split()]) == 0
    assert "bubble         24.3%" in capsys.readouterr().out
    assert cli.main(["schedule", "zb-h1", "--memory", "34,32"]) == 0
    # four in flight: on stage 0 as activations; on stage 3 three of them wait for W
    assert "peak memory    136; by stage 136 134 132 130" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["2f2b"], "schedule is not one that is known"),
        (["gpipe", "--memory-limit", "4"], ">0F4<"),
        (["1f1b", "--blocking"], "rank 2 at 2send_x1 for rank 3, rank 3 at 3send_dx0 for rank 2"),
        (["1f1b", "--cost", "F=1"], "--cost gives a time to F, B and W"),
        (["1f1b", "--memory", "much"], "--memory is two numbers"),
        (["1f1b", "--stages", "0"], "--stages must be at least 1"),
        (["none.txt"], "must be readable text"),
    ],
)
def test_what_cannot_be_is_refused_with_exit_code_2(arguments, reason, capsys):
    """With the reason, and the drawn grid where there is one."""
    assert cli.main(["schedule", *arguments]) == 2
    assert reason in capsys.readouterr().err


def test_your_own_schedule_from_save_to_refusal(tmp_path, capsys):
    """Save one, change it, look at it; spoil it, and see what is wrong."""
    path = tmp_path / "mine.txt"
    assert cli.main(["schedule", "1f1b", "--stages", "2", "--save", str(path)]) == 0
    assert path.read_text() == write(make("1f1b", 2, 8))
    assert cli.main(["schedule", str(path)]) == 0
    path.write_text(path.read_text().replace("1F0 1BW0", "1BW0 1F0"))
    assert cli.main(["schedule", str(path)]) == 2
    assert ">1BW0<" in capsys.readouterr().err


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_picture_has_a_box_for_every_action(name):
    """Well-formed SVG, two timelines on one scale, each action where and as long as it is."""
    one, two = simulate(make(name, 3, 4)), simulate(make(name, 3, 4), delay=0.5)
    root = ElementTree.fromstring(svg({"planned": one, "measured": two}, unit="s"))
    boxes = [r for r in root.iter(f"{SVG}rect") if r.find(f"{SVG}title") is not None]
    actions = sum(map(len, one.schedule.orders))
    assert len(boxes) == 2 * actions
    widths = sum(float(box.get("width")) for box in boxes)
    scale = (1100 - 130 - 20) / two.makespan
    assert widths == pytest.approx(scale * (one.busy.sum() + two.busy.sum()), rel=1e-2)


def test_the_trace_has_every_action_and_message():
    """Complete events per stage and timeline, and an arrow for each message, forwards in time."""
    timeline = simulate(make("interleaved", 3, 4), delay=0.25)
    events = json.loads(json.dumps(trace({"planned": timeline}, 1e3)))["traceEvents"]
    spans = [e for e in events if e["ph"] == "X"]
    assert len(spans) == sum(map(len, timeline.schedule.orders))
    assert max(e["ts"] + e["dur"] for e in spans) == pytest.approx(timeline.makespan * 1e3)
    begun = {e["id"]: e["ts"] for e in events if e["ph"] == "s"}
    ended = {e["id"]: e["ts"] for e in events if e["ph"] == "f"}
    messages = sum(i.op in SENDS for p in programs(timeline.schedule) for i in p)
    assert begun.keys() == ended.keys() and len(begun) == messages
    assert all(ended[k] - begun[k] >= 250 - 1e-9 for k in begun)


@mpi(3)
def test_clocks_that_disagree_are_aligned(comm):
    """Every rank's clock is a thousand seconds ahead of the one before; read at one moment (after
    a barrier) the corrected ones agree as well as a barrier can tell."""

    def clock():
        return time.perf_counter() + 1000 * comm.rank

    offset = measured.clock_offset(comm, clock)
    assert abs(offset + 1000 * comm.rank) < 0.05
    spread = []
    for _ in range(20):
        comm.Barrier()
        moments = comm.allgather(clock() + offset)
        spread.append(max(moments) - min(moments))
    assert min(spread) < 0.05


@mpi(2)
def test_a_measured_timeline_keeps_the_schedule_s_order(comm):
    """Every action once, in its order on its stage; and nothing starts before its input's maker
    is done: across ranks, on one clock (as exactly as busy ranks can read each other's)."""
    for name in ("1f1b", "zb-v", "interleaved"):
        layout = Layout(pp=2, schedule=name, microbatches=4)
        trainer = Trainer(
            ModelConfig(L=4, D=32, H=2, T=16), TrainConfig(global_batch=8), layout, comm
        )
        steps = measured.steps(trainer, warm_up=1, count=3)
        trainer.close()
        assert len(steps) == (3 if comm.rank == 0 else 0)
        for timeline in steps:
            schedule, ends, starts = timeline.schedule, {}, {}
            for stage in range(2):
                assert (np.diff(timeline.start[stage]) > 0).all()
                for k, (op, chunk, m) in enumerate(schedule.actions(stage)):
                    ends[op == F, chunk, m] = timeline.end[stage][k]
                    starts[op, chunk, m] = timeline.start[stage][k]
            for (op, chunk, m), start in starts.items():
                if op == F and chunk > 0:
                    assert start > ends[True, chunk - 1, m] - 5e-3
                if op == BW and chunk < schedule.chunks - 1:
                    assert start > ends[False, chunk + 1, m] - 5e-3
            assert 0 < timeline.bubble < 1
        if steps:
            planned = simulate(steps[0].schedule, measured.costs(steps))
            assert 0 < planned.bubble < 1


@pytest.mark.smoke
def test_a_run_shows_planned_beside_measured(tmp_path):
    """``--run`` under a launcher: both timelines on the screen, in the picture and in the trace."""
    files = [f"--svg={tmp_path / 'a.svg'}", f"--trace={tmp_path / 'a.json'}"]
    ended = mpirun(2, *RUN.split(), *files)
    assert ended.code == 0, ended.out
    assert "planned" in ended.out and "measured" in ended.out
    assert "stage 1 measured" in (tmp_path / "a.svg").read_text()
    names = [
        e["args"]["name"]
        for e in json.loads((tmp_path / "a.json").read_text())["traceEvents"]
        if e["ph"] == "M"
    ]
    assert "planned zb-h1" in names and "measured zb-h1" in names
