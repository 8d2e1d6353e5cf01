"""Generation: the same tokens in every layout, with the cache and without, and the right ones."""

from functools import cache

import numpy as np
import pytest
from mpitest import mpi
from standin_cupy import CUPY

from tparallel.config import Layout, ModelConfig, TrainConfig, preset, replace
from tparallel.generate import Generator, Rule
from tparallel.predict import generation
from tparallel.serial.context import context
from tparallel.serial.model import model_forward
from tparallel.serial.train import initial_params
from tparallel.train import Trainer

TRAIN = TrainConfig(dtype="float64", init="random")
SIZES = {"L": 4, "D": 12, "H": 4, "T": 20, "V": 23, "F": 20}  # 23: no tp divides the vocabulary
MODELS = {
    "gpt2": ModelConfig(**SIZES),
    "llama": preset("llama", **SIZES, K=6, Hkv=2),
    "qwen2": preset("qwen2", **SIZES, K=6, Hkv=1, tied=True),
}
PROMPTS = [[1, 2, 3], [5], [7, 8, 9, 10, 22, 0, 0], [0, 1], [4, 4, 4, 4]]
NEW = 6
RULES = (Rule(), Rule(1.0), Rule(0.8, top_k=5), Rule(0.9, top_p=0.7, seed=3), Rule(2.0, 9, 0.8))
LAYOUTS = (
    Layout(tp=4),
    Layout(pp=4, microbatches=2),
    Layout(pp=2, microbatches=3),
    Layout(dp=4),
    Layout(dp=4, zero=3, microbatches=2),
    Layout(tp=2, pp=2, microbatches=2),
    Layout(tp=2, dp=2, zero=3),
    Layout(pp=2, dp=2, zero=3, microbatches=2, cut="cost"),
)
WITHOUT_CACHE = (Layout(), LAYOUTS[0], LAYOUTS[-1])


def generated(model, layout, comm, rule=Rule(), cache=True, stop=None, new=NEW, train=TRAIN):  # noqa: B008
    """What each rank of a part of the job gets; None on the ranks that are left over."""
    part = comm.Split(comm.rank // layout.ranks, comm.rank)
    found = None
    if comm.rank < layout.ranks:
        cut = layout.dp * layout.microbatches
        train = replace(train, global_batch=-(-len(PROMPTS) // cut) * cut)
        trainer = Trainer(model, train, layout, part, learns=False)
        one = Generator(trainer, rule, cache).run(PROMPTS, new, stop)
        found = part.allgather((trainer.mesh.coords, one))
        trainer.close()
    part.Free()
    return found


@cache
def by_hand(name: str) -> list[list[int]]:
    """Greedy by the definition: the whole text through serial/model.py for every token."""
    model, out = MODELS[name], []
    params, at = initial_params(model, TRAIN), context(model, "float64")
    for prompt in PROMPTS:
        ids = [*prompt]
        for _ in range(NEW):
            ids.append(int(model_forward(np.array([ids]), params, at)[0][0, -1].argmax()))
        out.append(ids[len(prompt) :])
    return out


@mpi(4, timeout=90)
@pytest.mark.parametrize("name", MODELS)
def test_every_layout_finds_the_greedy_tokens_and_keeps_to_the_closed_forms(comm, name):
    """Five prompts of unequal length, more micro-batches than some layouts have prompts for; with
    the cache and without; bytes sent in prefill and in decode, and the cache's, to the byte."""
    model, wanted = MODELS[name], by_hand(name)
    assert len({i for row in wanted for i in row}) > 3  # it is no constant text
    for layout in (Layout(), *LAYOUTS):
        for kept in (True, False) if layout in WITHOUT_CACHE else (True,):
            ranks = generated(model, layout, comm, cache=kept)
            for _, g in ranks or ():
                assert g.ids == wanted, (layout.name, kept)
            if ranks and kept:
                assert_closed_forms(model, layout, ranks)


def assert_closed_forms(model, layout, ranks, rule=Rule()):  # noqa: B008
    cut = layout.dp * layout.microbatches
    train = replace(TRAIN, global_batch=-(-len(PROMPTS) // cut) * cut)
    about = model, train, layout, [len(p) for p in PROMPTS], NEW
    predicted = generation.wire(*about, rule.candidates(model.V))
    for part in (0, 1):
        for axis, sent in predicted[part].items():
            assert [g.wire[part][axis] for _, g in ranks] == sent, (layout.name, part, axis)
    assert [g.cache for _, g in ranks] == generation.cache(*about), layout.name


@mpi(4, timeout=90)
def test_a_sample_depends_on_seed_and_place_and_on_no_layout(comm):
    """Temperature, top-k, top-p and both: the same tokens in every layout, without the cache too;
    bytes as predicted; another seed, other tokens."""
    model, seen = MODELS["llama"], []
    for rule in RULES[1:]:
        alone = comm.bcast(generated(model, Layout(), comm, rule), root=0)[0][1].ids
        for layout in (LAYOUTS[0], LAYOUTS[5], LAYOUTS[7]):
            ranks = generated(model, layout, comm, rule)
            for _, g in ranks or ():
                assert g.ids == alone, (rule, layout.name)
            if ranks:
                assert_closed_forms(model, layout, ranks, rule)
        off = generated(model, Layout(tp=4), comm, rule, cache=False)
        assert off is None or off[0][1].ids == alone
        seen.append(alone)
    other = generated(model, Layout(tp=4), comm, replace(RULES[1], seed=1))
    assert other is None or other[0][1].ids not in seen
    assert by_hand("llama") not in seen and seen[0] != seen[1]


@mpi(4, timeout=60)
def test_a_stop_token_ends_a_row_and_no_rank_waits_for_it(comm):
    """Rows end at different steps; each has its tokens up to the stop token, in every layout; a
    micro-batch that has ended is not computed any more."""
    wanted = by_hand("gpt2")
    stop = max(range(23), key=lambda i: sum(i in row[:-1] for row in wanted))
    cut = [row[: row.index(stop) + 1] if stop in row else row for row in wanted]
    assert any(len(row) < NEW for row in cut)
    for layout in (Layout(microbatches=5), *LAYOUTS):
        ranks = generated(MODELS["gpt2"], layout, comm, stop=stop)
        for at, g in ranks or ():
            assert g.ids == cut, layout.name
            if layout.microbatches == 5:
                assert g.steps == [len(row) for row in cut]
            if layout.dp == 4 and layout.zero == 0 and at.dp == 2:
                assert g.steps == [len(cut[4])]  # its two rows: the last prompt, and a filler


def closest(name: str) -> tuple[float, float]:
    """Of all greedy tokens: the smallest lead of the best score, and float32's largest error."""
    lead, error = np.inf, 0.0
    params = {
        dtype: initial_params(MODELS[name], replace(TRAIN, dtype=dtype))
        for dtype in ("float64", "float32")
    }
    for prompt, new in zip(PROMPTS, by_hand(name)):
        text = np.array([prompt + new[:-1]])
        exact, rounded = (
            model_forward(text, p, context(MODELS[name], dtype))[0][0, len(prompt) - 1 :]
            for dtype, p in params.items()
        )
        second, best = np.sort(exact, -1)[:, -2:].T
        lead = min(lead, (best - second).min())
        error = max(error, np.abs(exact - rounded).max())
    return lead, error


@mpi(4, timeout=60)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "llama")) for name in MODELS]
)
def test_float32_finds_the_tokens_of_float64_where_the_lead_exceeds_its_error(comm, name):
    """Here it leads everywhere, by more than twice the largest error of a score."""
    lead, error = closest(name)
    assert lead > 2 * error > 0
    for layout in (Layout(tp=4), Layout(pp=2, dp=2, zero=3, microbatches=2)):
        ranks = generated(MODELS[name], layout, comm, train=replace(TRAIN, dtype="float32"))
        assert ranks is None or ranks[0][1].ids == by_hand(name), layout.name


@mpi(2, timeout=60, env={"TPARALLEL_KERNELS": "fast"})
def test_the_fast_kernels_find_the_same_tokens(comm):
    """Prefill and decode through numba's kernels, on one rank and cut."""
    pytest.importorskip("numba", reason="needs the extra fast")
    for name in MODELS:
        for layout in (Layout(), Layout(tp=2), Layout(pp=2, microbatches=2)):
            ranks = generated(MODELS[name], layout, comm)
            assert ranks is None or ranks[0][1].ids == by_hand(name), (name, layout.name)


@pytest.fixture
def numpys():
    """The greedy tokens, for ranks that have no NumPy backend."""
    return by_hand("llama")


@mpi(2, timeout=90, env=CUPY)
def test_generation_runs_on_the_stand_in_for_cupy(comm, numpys):
    """Greedy, sampled, top-k and top-p, cut every way that two ranks can be: NumPy's tokens."""
    model = MODELS["llama"]
    for rule in RULES:
        found = [
            generated(model, layout, comm, rule, new=4)
            for layout in (Layout(tp=2), Layout(pp=2, microbatches=2), Layout(dp=2, zero=3))
        ]
        assert found[0][0][1].ids == found[1][0][1].ids == found[2][0][1].ids
        assert rule != Rule() or found[0][0][1].ids == [row[:4] for row in numpys]
