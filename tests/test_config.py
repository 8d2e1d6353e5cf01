"""What is refused, and that the way out leads out: each error's advice is followed and retried."""

import itertools
import re
from dataclasses import fields

import pytest
from mpitest import mpi

from tparallel.config import Layout, ModelConfig, TrainConfig, check
from tparallel.errors import ConfigError, LayoutError, TParallelError

MODEL = {"L": 4, "D": 12, "H": 6, "T": 8, "V": 23, "F": 24}
TRAIN = {"global_batch": 24}
GOOD = {**MODEL, **TRAIN, "tp": 1, "pp": 1, "dp": 1, "microbatches": 1, "zero": 0, "schedule": ""}


def attempt(settings):
    """The error that these settings meet, or None."""
    given = {**GOOD, "ranks": None, **settings}

    def made(config):
        return config(**{f.name: given[f.name] for f in fields(config) if f.name in given})

    try:
        check(made(ModelConfig), made(TrainConfig), made(Layout), given["ranks"])
    except TParallelError as error:
        return error
    return None


def ways_out(settings, error):
    """The settings that a person would try next, who does what the text says."""
    way = str(error).split(" Use ", 1)[1].rstrip(".")
    for name, value in re.findall(r"(\w+) = ([\w.]+)", way):
        yield {name: value if name == "schedule" else float(value) if "." in value else int(value)}
    for name, choices in re.findall(r"(\w+) ((?:[\w-]+, )*[\w-]+(?: or [\w-]+)?)$", way):
        if name in {f.name for c in (ModelConfig, TrainConfig, Layout) for f in fields(c)}:
            for choice in re.split(", | or ", choices):
                yield {name: int(choice) if choice.isdigit() else choice}
    for name, value in re.findall(r"(\w+) of (?:at most )?(\d+)", way):
        yield {"global_batch" if name == "batch" else name: int(value)}
    for ranks in re.findall(r"mpirun -n (\d+)", way):
        yield {"ranks": int(ranks)}
    if "no schedule" in way:
        yield {"schedule": ""}
    if "Use 0 for none" in str(error):
        yield {re.match(r"(\w+)", str(error))[1]: 0}


# One thing wrong at a time, and the rule that the text must state.
WRONG = [
    ({"L": 0}, ConfigError, "L must be at least 1: L = 0"),
    ({"V": -3}, ConfigError, "V must be at least 1: V = -3"),
    ({"H": 5}, ConfigError, "H must divide D where K, the head size, is not given: D = 12, H = 5"),
    ({"K": -1}, ConfigError, "K must be at least 0: K = -1"),
    ({"K": 3, "position": "rope"}, ConfigError, "rope turns pairs of numbers"),
    ({"norm": "batchnorm"}, ConfigError, "norm is not one that is known: norm = batchnorm"),
    ({"norm_eps": 0.0}, ConfigError, "norm_eps must be positive: norm_eps = 0.0"),
    ({"position": "alibi"}, ConfigError, "position is not one that is known: position = alibi"),
    ({"mlp": "relu"}, ConfigError, "mlp is not one that is known: mlp = relu"),
    ({"bias": "some"}, ConfigError, "bias is not one that is known: bias = some"),
    ({"rope_scaling": "linear:factor=2"}, ConfigError, "rope_scaling is about rotary positions"),
    ({"optimizer": "adam"}, ConfigError, "optimizer is not one that is known: optimizer = adam"),
    ({"dtype": "int8"}, ConfigError, "dtype is not one that is known: dtype = int8"),
    ({"loss_scale": 0.5}, ConfigError, "loss_scale must be at least 1: loss_scale = 0.5"),
    ({"scale_window": 0}, ConfigError, "scale_window must be at least 1: scale_window = 0"),
    ({"bucket_bytes": -1}, LayoutError, "bucket_bytes must be at least 0: bucket_bytes = -1"),
    ({"shard_group": 2}, LayoutError, "a shard group needs something sharded"),
    (
        {"dp": 4, "zero": 3, "shard_group": 3, "ranks": 4},
        LayoutError,
        "shard groups of at least two ranks must fill dp: dp = 4, shard_group = 3",
    ),
    ({"reduce_each": "epoch"}, LayoutError, "reduce_each is not one that is known: reduce_each"),
    ({"init": "zeros"}, ConfigError, "init is not one that is known: init = zeros"),
    ({"steps": 0}, ConfigError, "steps must be at least 1: steps = 0"),
    ({"global_batch": 0}, ConfigError, "global_batch must be at least 1: global_batch = 0"),
    ({"seed": -1}, ConfigError, "seed must be at least 0: seed = -1"),
    ({"clip": -1.0}, ConfigError, "clip must not be negative: clip = -1.0"),
    ({"lr": float("nan")}, ConfigError, "lr must not be negative: lr = nan"),
    ({"beta2": 1.0}, ConfigError, "beta2 must lie in [0, 1): beta2 = 1.0"),
    ({"tp": 0}, LayoutError, "tp must be at least 1: tp = 0"),
    ({"microbatches": 0}, LayoutError, "microbatches must be at least 1: microbatches = 0"),
    ({"dp": 2, "zero": 4}, LayoutError, "ZeRO has four stages: zero = 4"),
    ({"zero": 2}, LayoutError, "ZeRO partitions over data-parallel ranks: zero = 2, dp = 1"),
    ({"schedule": "gpipe"}, LayoutError, "a schedule orders pipeline stages: schedule = gpipe"),
    ({"pp": 2, "schedule": "2f2b"}, LayoutError, "schedule is not one that is known"),
    ({"pp": 2, "chunks": 2}, LayoutError, "1f1b holds 1 chunk per stage: chunks = 2"),
    ({"pp": 2, "schedule": "zb-v", "chunks": 3}, LayoutError, "zb-v holds 2 chunks per stage"),
    ({"pp": 2, "schedule": "interleaved", "chunks": 1}, LayoutError, "two chunks or more"),
    ({"pp": 3, "schedule": "zb-v"}, LayoutError, "every chunk of a pipeline needs a block: L = 4"),
    ({"chunks": -1}, LayoutError, "chunks must be at least 0: chunks = -1"),
    ({"pp": 2, "cut": "blocks"}, LayoutError, "cut is not one that is known: cut = blocks"),
    ({"tp": 4}, LayoutError, "tp must divide the number of heads: H = 6, tp = 4"),
    ({"tp": 6, "F": 10}, LayoutError, "tp must divide the feed-forward size: F = 10, tp = 6"),
    ({"tp": 4, "V": 2, "F": 9}, LayoutError, "tp must divide the number of heads: H = 6, tp = 4"),
    ({"tp": 6, "V": 4}, LayoutError, "every tp rank needs a row of the vocabulary: V = 4, tp = 6"),
    ({"pp": 5}, LayoutError, "every pipeline stage needs a block: L = 4, pp = 5"),
    ({"dp": 4, "microbatches": 4}, LayoutError, "dp × microbatches must divide the global batch"),
    ({"tp": 2, "pp": 2, "ranks": 8}, LayoutError, "tp × pp × dp = 2 × 2 × 1 = 4, but mpirun"),
    ({"tp": 3, "ranks": 4}, LayoutError, "= 3, but mpirun started 4 ranks"),
    ({"dp": 4, "zero": 1, "ranks": 1}, LayoutError, "= 4, but mpirun started 1 rank"),
]


@pytest.mark.parametrize("settings, kind, rule", WRONG, ids=[rule for _, _, rule in WRONG])
def test_an_error_states_the_rule_the_values_and_a_way_out_that_works(settings, kind, rule):
    """*Rule; values; way out*: every setting that the text offers is accepted when it is tried."""
    error = attempt(settings)
    assert type(error) is kind and rule in str(error)
    offered = list(ways_out({**GOOD, **settings}, error))
    assert offered, error
    for change in offered:
        assert attempt({**settings, **change}) is None, (str(error), change)


def leads_out(settings, seen):
    """Does some chain of advice, taken step by step, end in settings that are accepted?"""
    error = attempt(settings)
    if error is None:
        return True
    key = tuple(sorted(settings.items()))
    if key in seen:
        return False
    seen.add(key)
    offered = [{**settings, **change} for change in ways_out({**GOOD, **settings}, error)]
    return any(leads_out(next_try, seen) for next_try in offered)


def test_from_any_layout_the_advice_leads_to_one_that_fits():
    """Several things wrong at once: one error after the other, and then it runs."""
    grid = {
        "tp": (1, 4, 5, 6),
        "pp": (1, 3, 5),
        "dp": (1, 2, 7),
        "zero": (0, 1, 3),
        "schedule": ("", "gpipe", "x"),
        "microbatches": (1, 5),
        "V": (2, 23),
        "ranks": (1, 6, 8),
    }
    for values in itertools.product(*grid.values()):
        settings = dict(zip(grid, values))
        assert leads_out(settings, set()), settings


def test_a_layout_is_read_from_key_value_pairs():
    """Order and blanks do not matter; what is not named keeps its default."""
    assert Layout.parse("tp=2,pp=2,schedule=gpipe,microbatches=4") == Layout(
        tp=2, pp=2, schedule="gpipe", microbatches=4
    )
    assert Layout.parse(" zero = 3 , dp=2 ") == Layout(dp=2, zero=3)
    assert Layout.parse("dp=2", microbatches=4) == Layout(dp=2, microbatches=4)
    assert Layout.parse("microbatches=2", microbatches=4).microbatches == 2
    assert Layout.parse("pp=2").schedule == "1f1b"


@pytest.mark.parametrize(
    "text",
    ["", "tp", "tp=", "tp=2;dp=2", "ranks=4", "tp=two", "tp=--2", "tp=²", "tp=2,tp=4", "tp=-2"],
)
def test_a_layout_that_cannot_be_read_is_a_layout_error(text):
    """Never a guess, never a Python error; a key that is given twice is not chosen from."""
    with pytest.raises(LayoutError, match=r"Example|Use|Leave"):
        Layout.parse(text)


def test_the_name_says_what_differs_from_one_process():
    """The rows of the comparison are told apart by it."""
    names = {"tp=4": "tp=4", "pp=2": "pp=2 1f1b", "dp=2": "dp=2 zero=0", "microbatches=2": "serial"}
    assert {text: Layout.parse(text).name for text in names} == names
    assert (
        Layout.parse("tp=2,pp=2,dp=2,zero=3,schedule=gpipe").name == "tp=2 pp=2 dp=2 gpipe zero=3"
    )


@mpi(3)
def test_every_rank_refuses_with_the_same_words_before_the_first_message(comm):
    """No communicator is made for a layout that does not fit: nothing is left to clean up."""
    from tparallel.train import Trainer

    class Silent:
        """A communicator that knows its size, and that nobody may use."""

        size, rank = comm.size, comm.rank

    model, train = ModelConfig(**MODEL), TrainConfig(**TRAIN)
    for layout in (Layout(tp=2), Layout(pp=3, schedule="x"), Layout(dp=3, microbatches=3)):
        with pytest.raises(LayoutError) as refused:
            Trainer(model, train, layout, Silent)
        assert len(set(comm.allgather(str(refused.value)))) == 1
