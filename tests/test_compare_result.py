"""What is read off a result: the verdict, the table, the sentences, the picture."""

import copy
import importlib.util
import io
import json
import math
import re

import pytest
from rich.console import Console

from tparallel import predict
from tparallel.compare.record import dumps
from tparallel.compare.sentences import sentences
from tparallel.compare.show import show_result
from tparallel.compare.table import amount
from tparallel.compare.verdict import failures
from tparallel.config import ModelConfig, TrainConfig, as_dict
from tparallel.layouts import for_ranks
from tparallel.serial.parameters import count

MODEL, TRAIN = ModelConfig(), TrainConfig(steps=5)
LOSSES = [5.5, 5.0, 4.5, 4.25, 4.0]


@pytest.fixture
def result():
    """Of a run as it should be, to be damaged; the bytes are the closed forms', the times are
    invented."""
    return {
        "version": 1,
        "model": {**as_dict(MODEL), "parameters": count(MODEL)},
        "run": {
            "ranks": 4,
            "cores": 4,
            "load_at_start": 0.3,
            "steps": 5,
            "dtype": "float32",
            "global_batch": 8,
            "mpi": "an MPI",
            "train": as_dict(TRAIN),
            "data": {"name": "a text", "size": 1000, "sha256": "0" * 64},
        },
        "serial_loss": LOSSES,
        "rows": [true_row(layout) for layout in for_ranks(4)],
    }


def true_row(layout):
    held = predict.held(MODEL, TRAIN, layout)
    wire = predict.wire(MODEL, TRAIN, layout)
    bubble = predict.bubble(layout)
    return {
        "name": layout.name,
        "layout": as_dict(layout),
        "pool_peak_bytes": [None] * layout.ranks,
        "loss": list(LOSSES),
        "loss_error": 0.0,
        "norm_error": 1e-16,
        "gradient_error": 1e-15 * layout.ranks,
        "worst_gradient": "block.2.mlp.w_in",
        "loss_curve_error": 1e-7,
        "held_bytes": copy.deepcopy(held),
        "held_bytes_predicted": held,
        "wire_bytes": copy.deepcopy(wire),
        "wire_bytes_predicted": wire,
        "step_seconds": 0.1,
        "tokens_per_second": 1e4 + 10 * layout.tp,
        "wait_fraction": [0.1] * layout.ranks,
        "bubble_predicted": bubble,
        "bubble_measured": bubble and bubble + 0.03,
        "crowded": False,
    }


def row(result, name):
    return next(r for r in result["rows"] if r["name"] == name)


def shown(result, width=100):
    console = Console(width=width, record=True, file=io.StringIO())
    show_result(result, [], console)
    return console.export_text()


def test_a_result_as_it_should_be_has_no_failures(result):
    """And no mark in the table."""
    assert failures(result) == []
    assert "!" not in shown(result)


DAMAGE = {
    "gradient_error": (2e-12, "the gradient of"),
    "loss_error": (math.nan, "the loss differs"),
    "norm_error": (math.inf, "the gradient norm"),
    "loss_curve_error": (1.1e-5, "the loss curve"),
}


@pytest.mark.parametrize("key", DAMAGE)
def test_one_error_above_its_bound_in_one_layout_is_enough_to_fail(result, key):
    """1e-12 in float64, 1e-5 along the curve; NaN and infinity are above every bound."""
    value, said = DAMAGE[key]
    row(result, "tp=2 dp=2 zero=3")[key] = value
    (text,) = failures(result)
    assert text.startswith("tp=2 dp=2 zero=3: ") and said in text
    assert "Not equal: 1 of 13 layouts" in sentences(result)[0]
    json.loads(dumps(result))  # still JSON for every reader


@pytest.mark.parametrize(
    "kind, part", [("held", "params"), ("held", "optimizer"), ("wire", "tp"), ("wire", "pp")]
)
def test_one_byte_on_one_rank_is_enough_to_fail(result, kind, part):
    """States and wire equal the closed form exactly; a difference is marked in the table."""
    row(result, "tp=2 pp=2 1f1b")[f"{kind}_bytes"][part][3] += 1
    (text,) = failures(result)
    assert text.startswith("tp=2 pp=2 1f1b: ") and part in text
    assert "!" in shown(result) and "not what the closed forms say" in sentences(result)[1]


def test_the_sentences_say_what_the_table_shows(result):
    """Other numbers, other sentences: the names and figures are looked up."""
    assert sentences(result)[0].startswith("Equal: 13 layouts, ")
    tp = row(result, "tp=4")
    tp["tokens_per_second"], tp["gradient_error"] = 1e6, 7e-13
    tp["wire_bytes"] = {"tp": [0] * 4, "pp": [0] * 4, "dp": [123_000_000] * 4}
    tp["held_bytes"] = {kind: [25] * 4 for kind in tp["held_bytes"]}
    equal, held, time = sentences(result)
    assert re.search(r"within 7e-13 of serial's \(worst: \S+, tp=4\)", equal)
    assert "tp=4 holds" in held and "tp=4 sends most" in held
    assert time.startswith("Time: tp=4 trains fastest, 1,000,000 tokens/s")


def test_one_layout_alone_makes_sentences_too(result):
    """No "most" and "least" of one."""
    for name in ("serial", "pp=4 gpipe"):
        alone = {**result, "rows": [row(result, name)]}
        assert len(sentences(alone)) == 3
        assert "least" not in " ".join(sentences(alone))
        shown(alone)


def test_the_longest_names_fit_in_the_table(result):
    """tp=2 pp=2 dp=2 1f1b zero=3, hundreds of MB, six digits of tokens: 100 columns."""
    long = copy.deepcopy(row(result, "pp=2 dp=2 1f1b zero=1"))
    long["name"], long["tokens_per_second"] = "tp=2 pp=2 dp=2 1f1b zero=3", 987_654.0
    for key in ("held_bytes", "wire_bytes"):
        long[key] = long[f"{key}_predicted"] = {part: [987_654_321] * 8 for part in long[key]}
    longer = {**long, "name": long["name"] + " bucket_bytes=100000"}
    result["rows"] = [long, longer]
    text = shown(result)
    assert (
        "tp=2 pp=2 dp=2 1f1b zero=3" in text
        and "988" in text
        and "\nbucket_bytes" in text
        and "987,654" in text
    )
    assert all(len(line) <= 100 and "…" not in line for line in text.splitlines())


def test_a_narrow_terminal_breaks_lines_and_cuts_nothing_off(result):
    """Every figure is there at 60 columns as well."""
    wide, narrow = shown(result), shown(result, width=60)
    assert "…" not in narrow
    assert re.findall(r"[\d.,]+", wide) == re.findall(r"[\d.,]+", narrow)


def test_hybrid_sharding_is_sent_over_dp(result):
    """Its two halves are one column, and a byte too many in either is marked there."""
    r = row(result, "dp=4 zero=3")
    wire = r["wire_bytes"] | {"dp": [0] * 4, "near": [7_000_000] * 4, "far": [70_000] * 4}
    r["wire_bytes"], r["wire_bytes_predicted"] = wire, copy.deepcopy(wire)
    assert failures(result) == [] and " 7.07 " in shown(result)
    wire["far"][2] += 1
    assert len(failures(result)) == 1 and " 7.07! " in shown(result)


def test_amounts_have_two_or_three_digits():
    """And zero is not confused with something small."""
    cases = {0: "-", 1: "0.00", 12_900_000: "12.9", 3_420_000: "3.42", 123_400_000: "123"}
    assert {n: amount(n, "MB") for n in cases} == cases


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs the extra plot")
@pytest.mark.parametrize("names", [None, {"serial"}, {"pp=4 gpipe"}])
def test_the_picture_can_be_drawn_of_any_list(result, names, tmp_path):
    """All layouts, serial alone, a pipeline alone."""
    from tparallel.compare.plot import plot

    result["rows"] = [r for r in result["rows"] if names is None or r["name"] in names]
    assert plot(result, tmp_path).read_bytes()[:4] == b"\x89PNG"


def test_times_on_too_few_cores_are_marked(result):
    """In the table, below it, and in the sentence."""
    assert "*" not in shown(result)
    row(result, "tp=4")["crowded"] = True
    text = shown(result)
    assert "100*" in text and "*: more ranks than the 4 cores" in text
    assert "shared by more ranks in 1 of 13 layouts" in sentences(result)[2]


def test_a_busy_machine_is_mentioned(result):
    """Where others were at work already, times compare nothing; no line where none were."""
    assert "busy" not in shown(result)
    result["run"]["load_at_start"] = 7.25
    assert "The machine was busy at the start (load 7.2)" in shown(result)
    result["run"]["load_at_start"] = math.nan
    assert "busy" not in shown(result)
