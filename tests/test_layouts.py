"""The one list of layouts: complete, possible, and read in the same way everywhere."""

import pytest

from tparallel.config import Layout, ModelConfig, TrainConfig, check
from tparallel.errors import LayoutError
from tparallel.layouts import for_ranks, labels, microbatches, parse, picked


def names(n, **model):
    return labels(for_ranks(n, ModelConfig(**model)))


def test_four_ranks_compare_every_method_alone_and_every_pair():
    """Serial, tp with and without sp, two schedules, four ZeRO stages, each pair of methods."""
    assert {
        "serial",
        "tp=4",
        "tp=4 sp=keep",
        "pp=4 gpipe",
        "pp=4 1f1b",
        *(f"dp=4 zero={stage}" for stage in range(4)),
        "tp=2 pp=2 1f1b",
        "tp=2 dp=2 zero=1",
        "tp=2 dp=2 zero=3",
        "pp=2 dp=2 1f1b zero=1",
    } <= set(names(4))


def test_eight_ranks_add_all_three_methods_with_every_stage():
    """2 × 2 × 2 with ZeRO 0, 1, 2 and 3."""
    assert {f"tp=2 pp=2 dp=2 1f1b zero={stage}" for stage in range(4)} <= set(names(8))


@pytest.mark.parametrize("n", range(1, 17))
@pytest.mark.parametrize(
    "model",
    [ModelConfig(), ModelConfig(L=3, D=12, H=6, T=8, V=259), ModelConfig(L=1, D=8, H=1, T=8, V=9)],
    ids=["default", "six heads", "one head, one block"],
)
def test_every_layout_of_the_list_is_possible_and_is_there_once(n, model):
    """None needs more ranks than there are; none is refused; serial comes first."""
    layouts = for_ranks(n, model)
    assert layouts[0].ranks == 1
    assert len(set(layouts)) == len(set(labels(layouts))) == len(layouts)
    for layout in layouts:
        assert layout.ranks <= n
        check(model, TrainConfig(), layout)


def test_a_method_that_cannot_use_all_ranks_uses_as_many_as_it_can():
    """Four heads on three ranks are cut two ways; five ranks are four and one that sleeps."""
    assert "tp=2" in names(3) and "pp=3 gpipe" in names(3)
    assert "tp=3" in names(3, D=12, H=6)
    assert names(5) == names(4)
    assert names(1) == ["serial"]
    assert not any("tp" in name for name in names(4, H=1))


@pytest.mark.parametrize("dp, M", [(1, 4), (2, 4), (4, 2), (8, 1)])
def test_rows_are_cut_into_four_micro_batches_where_they_can_be(dp, M):
    """A global batch of 8: a rank has 8 / dp rows."""
    assert microbatches(dp, 8) == M
    assert all(
        layout.microbatches == M for n in (4, 8) for layout in for_ranks(n) if layout.dp == dp
    )


def test_layouts_are_picked_by_the_names_of_the_table_in_its_order():
    """Spaces do not matter; the order is the list's."""
    found = picked(for_ranks(4), "dp=4  zero=2; tp=4;")
    assert labels(found) == ["tp=4", "dp=4 zero=2"]


def test_an_unknown_name_is_refused_with_the_names_that_there_are():
    """The same text on every rank: nothing in it depends on a hash."""
    with pytest.raises(
        LayoutError, match=r"'tp=8' is not in it.*serial; tp=4; tp=4 sp=keep; pp=4 gpipe"
    ):
        picked(for_ranks(4), "tp=4; tp=8; tp=16")


def test_a_layout_of_ones_own_has_the_micro_batches_of_the_list():
    """Unless it says how many."""
    assert parse("tp=2,dp=4,zero=2", 8) == Layout(tp=2, dp=4, zero=2, microbatches=2)
    assert parse("pp=2,microbatches=8", 8) == Layout(pp=2, microbatches=8)


def test_layouts_that_differ_in_micro_batches_only_have_different_names():
    """A row of the table is found by its name."""
    layouts = [Layout(pp=2, microbatches=m) for m in (4, 8, 2)]
    assert labels(layouts) == ["pp=2 1f1b", "pp=2 1f1b M=8", "pp=2 1f1b M=2"]
