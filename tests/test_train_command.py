"""``tparallel train``: the log says what serial training would say; errors are clear."""

import argparse
from math import log
from pathlib import Path

import numpy as np
import pytest
from mpitest import mpirun
from train_jobs import TINY, TRAIN, records, start

from tparallel import data
from tparallel.commands import train as command
from tparallel.compare.equality import relative_error
from tparallel.config import Layout, ModelConfig, TrainConfig
from tparallel.serial.adamw import learning_rate
from tparallel.serial.loss import cross_entropy_forward
from tparallel.serial.model import model_forward
from tparallel.serial.train import initial_params, train_step, zeros_like

MODEL = ModelConfig(L=2, D=16, H=2, T=8, V=259)
BOUND = 1e-10  # parameters after AdamW steps in float64


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of four ranks on forty short files: (header, a line per step, output, files)."""
    folder = tmp_path_factory.mktemp("run")
    files = [str(folder / f"{i}.txt") for i in range(40)]
    for i, name in enumerate(files):
        Path(name).write_text(f"{i} cats sat on the mat. " * 2 + "It was soft.")
    log_file = folder / "logs" / "run.jsonl"
    flags = ["--tp", "2", "--pp", "2", "--steps", "6", "--warmup", "2", "--dtype", "float64"]
    flags += ["--validate-every", "4", "--validate-batches", "2", "--log", str(log_file)]
    ended = mpirun(4, *TRAIN, *TINY, *flags, "--data", *files)
    assert ended.code == 0, ended.out
    header, *lines = records(log_file)
    return header, lines, ended.out, files


def test_the_loss_and_norm_of_every_step_are_those_of_serial_training(run):
    """tp=2 pp=2 with 4 micro-batches against serial/train.py on the same batches: the loss before
    each update, the gradient norm, and the loss on held-out text after steps 4 and 6."""
    lines, files = run[1], run[3]
    corpus = data.load(files, MODEL.V)
    config = TrainConfig(steps=6, warmup=2, dtype="float64")
    params = initial_params(MODEL, config)
    moments = zeros_like(params), zeros_like(params)
    for step, line in enumerate(lines):
        batch = corpus.batch(step, config.global_batch, MODEL.T, config.seed)
        loss, norm = train_step(params, moments, *batch, step, config)
        assert relative_error(line["loss"], loss) < BOUND
        assert relative_error(line["gradient_norm"], norm) < BOUND
        assert line["learning_rate"] == learning_rate(step, config)
        assert ("validation_loss" in line) == (step in (3, 5))
        if "validation_loss" in line:
            held_out = np.mean([serial_loss(params, corpus, k) for k in range(2)])
            assert relative_error(line["validation_loss"], held_out) < BOUND


def serial_loss(params: dict, corpus: data.Corpus, k: int) -> float:
    tokens, targets = corpus.validation(k, 8, MODEL.T)
    return float(cross_entropy_forward(model_forward(tokens, params)[0], targets, 64)[0])


def test_bits_per_byte_count_bytes_and_not_special_tokens(run):
    """With V = 259 some targets end a document: the loss is spread over the others."""
    lines, files = run[1], run[3]
    corpus = data.load(files, MODEL.V)
    special = 0
    for step, line in enumerate(lines):
        targets = corpus.batch(step, 8, MODEL.T, 0)[1]
        count = int((targets < 256).sum())
        special += targets.size - count
        assert line["bits_per_byte"] == pytest.approx(line["loss"] * 64 / log(2) / count, 1e-12)
    assert special > 0, "no batch met the end of a document: the text is badly chosen"


def test_the_log_is_a_header_and_one_line_per_step(run):
    """Configuration, versions and the identity of the text first; then steps 1, 2, 3, ..."""
    header, lines, _, files = run
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert header["data"] == data.load(files, MODEL.V).identity()
    assert ModelConfig(**header["model"]) == MODEL
    assert Layout(**header["layout"]) == Layout(2, 2, 1, schedule="1f1b", microbatches=4)
    assert TrainConfig(**header["train"]) == TrainConfig(steps=6, warmup=2, dtype="float64")
    assert header["ranks"] == 4 and {"tparallel", "python", "numpy", "mpi"} <= set(header)
    assert all(line["tokens_per_second"] == pytest.approx(64 / line["seconds"]) for line in lines)


def test_what_is_printed_is_plain_where_there_is_no_terminal(run):
    """One table from one rank, a line per step, no control characters, every number of the log."""
    _, lines, out, _ = run
    assert out.count("step    loss") == 1 and "\x1b" not in out and "\r" not in out
    table = out[out.index("step    loss") :].split("\n\n")[0].splitlines()[1:]
    for line, row in zip(lines, map(str.split, table), strict=True):
        assert row[:2] == [str(line["step"]), f"{line['loss']:.4f}"]
        assert row[2] == f"{line['bits_per_byte']:.4f}"
        assert len(row) == (8 if "validation_loss" in line else 6)
    assert "6 of 6 steps" in out and "On held-out text" in out


def test_dp_takes_the_ranks_that_tp_and_pp_leave(tmp_path):
    """Four ranks, tp = 2 and no --dp: dp = 2, and a ZeRO stage that needs it is accepted."""
    file = tmp_path / "log"
    ended = mpirun(4, *TRAIN, *TINY, "--tp", "2", "--zero", "2", "--steps", "1", "--log", str(file))
    assert ended.code == 0, ended.out
    layout = records(file)[0]["layout"]
    assert (layout["tp"], layout["pp"], layout["dp"], layout["zero"]) == (2, 1, 2, 2)


@pytest.mark.parametrize(
    "flags, said",
    [
        ("--tp 4", "LayoutError: tp must divide the number of heads: H = 2, tp = 4."),
        ("--tp 2 --dp 1", "LayoutError: tp × pp × dp = 2 × 1 × 1 = 2, but mpirun started 4 ranks."),
        ("--schedule zigzag --pp 2 --tp 2", "LayoutError: schedule"),
        ("--lr -1", "ConfigError: lr must not be negative"),
        ("--validate-every -5", "ConfigError: validation needs a number of steps"),
        ("--data no-such-file", "DataError: a text must be a file that can be read"),
        ("--data {here} --T 90000", "DataError: the held-out tenth of the text must be longer"),
        ("--log {here}", "ConfigError: --log must name a new file"),
        ("--log {here}/x", "ConfigError: --log must name a new file"),
    ],
)
def test_a_wrong_request_is_refused_once_with_exit_code_2(flags, said):
    """On four ranks: one line, no traceback, nothing trained, no file overwritten."""
    before = Path(__file__).read_bytes()
    ended = mpirun(4, *TRAIN, *TINY, *flags.format(here=__file__).split())
    assert ended.code == 2, ended.out
    assert ended.out.count(said) == 1, ended.out
    assert "Traceback" not in ended.out and "step    loss" not in ended.out
    assert Path(__file__).read_bytes() == before


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_step(tmp_path):
    """A learning rate beyond all bounds: exit code 1, the step, a way out; null in the log."""
    file = tmp_path / "log"
    flags = ["--lr", "1e30", "--clip", "0", "--steps", "50", "--log", str(file)]
    ended = mpirun(2, *TRAIN, *TINY, *flags)
    *_, last = lines = records(file)[1:]
    assert ended.code == 1, ended.out
    assert last["loss"] is None or last["gradient_norm"] is None
    assert all(line["loss"] and line["gradient_norm"] for line in lines[:-1])
    assert ended.out.count(f"at step {last['step']} they are") == 1 and "Use a smaller --lr" in (
        ended.out
    )
    assert "Traceback" not in ended.out and "Warning" not in ended.out


def test_float16_goes_on_after_an_update_that_overflows(tmp_path):
    """A loss scale far too large: the first update is skipped, the loss stays finite, the scale is
    halved until gradients fit, and training ends well."""
    file = tmp_path / "log"
    flags = ["--dtype", "float16", "--loss-scale", "1e9", "--steps", "30", "--log", str(file)]
    ended = mpirun(2, *TRAIN, *TINY, *flags)
    assert ended.code == 0, ended.out
    lines = records(file)[1:]
    assert lines[0]["gradient_norm"] is None and lines[-1]["gradient_norm"] is not None
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_one_process_needs_no_launcher(tmp_path):
    """Plain ``tparallel train``: the layout is serial, the text is the one of this Python."""
    file = tmp_path / "log"
    process = start(*TRAIN, *TINY, "--steps", "2", "--log", str(file))
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 0, out
    header = records(file)[0]
    assert header["ranks"] == 1 and header["data"] == data.load(V=259).identity()


def test_every_field_of_the_configuration_has_a_flag():
    """--help lists them all, with defaults; the examples in it are accepted."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    text = parser.format_help()
    for config in (ModelConfig, TrainConfig, Layout):
        for field in config.__dataclass_fields__:
            assert f"--{field.replace('_', '-')} " in text or f"--{field}," in text, field
    for line in command.EXAMPLES.splitlines():
        _, is_example, flags = line.partition("tparallel train")
        if is_example:
            known = flags.replace(" --ranks 4", "").split("  ")[0]  # that flag is cli.py's own
            parser.parse_args(known.split())
