"""Generation: the same tokens in every layout, with the cache and without, and the right ones."""

import io
from functools import cache

import numpy as np
import pytest
from mpitest import mpi
from standin_cupy import CUPY

from tparallel.config import Layout, ModelConfig, TrainConfig, preset, replace
from tparallel.errors import ConfigError, DataError, TParallelError
from tparallel.generate import Generator, Rule
from tparallel.generate.rows import check
from tparallel.generate.sample import choose, gumbel
from tparallel.generate.text import Stream, Words
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


class Alone:
    rank, size = 0, 1


def draws(logits, rule: Rule, count: int) -> np.ndarray:
    """How often each id is chosen, at as many positions."""
    keys = np.array([[rule.key(0, i)] for i in range(count)], np.uint64)
    rows = np.broadcast_to(np.array(logits), (count, len(logits)))
    ids = choose(rows, rule, keys, Alone(), len(logits))
    return np.bincount(ids, minlength=len(logits))


LOGITS = np.log([0.4, 0.05, 0.25, 0.1, 0.2])
DISTRIBUTIONS = (
    (Rule(1.0), [0.4, 0.05, 0.25, 0.1, 0.2]),
    (Rule(0.5), np.array([16, 0.25, 6.25, 1, 4]) / 27.5),  # squares
    (Rule(1.0, top_k=2, seed=1), [0.4 / 0.65, 0, 0.25 / 0.65, 0, 0]),
    (Rule(1.0, top_p=0.85, seed=2), [0.4 / 0.85, 0, 0.25 / 0.85, 0, 0.2 / 0.85]),
    (Rule(1.0, top_p=0.84, seed=2), [0.4 / 0.85, 0, 0.25 / 0.85, 0, 0.2 / 0.85]),
    (Rule(1.0, top_k=3, top_p=0.7, seed=3), [0.4 / 0.65, 0, 0.25 / 0.65, 0, 0]),
    (Rule(1.0, top_p=1e-9), [1, 0, 0, 0, 0]),
)


@pytest.mark.parametrize("rule, wanted", DISTRIBUTIONS)
def test_tokens_come_as_often_as_their_probabilities_say(rule, wanted):
    """χ² of 40,000 draws below its 99.99 % quantile for four degrees of freedom, 23.5; a token that
    is cut off never comes.  The hash is fixed, so that this holds always or never."""
    wanted, N = np.array(wanted), 40_000
    found = draws(LOGITS, rule, N)
    assert (found[wanted == 0] == 0).all()
    some = wanted > 0
    assert (((found - N * wanted)[some]) ** 2 / (N * wanted[some])).sum() < 23.5


def test_the_statistics_notice_a_wrong_temperature():
    """The same draws against the probabilities of a temperature 5 % higher: χ² is beyond it."""
    p = np.exp(LOGITS / 1.05)
    p /= p.sum()
    assert ((draws(LOGITS, Rule(1.0), 40_000) - 40_000 * p) ** 2 / (40_000 * p)).sum() > 23.5


def test_noise_is_as_a_gumbel_distribution_says_and_rows_do_not_share_it():
    """Mean 0.5772, variance π²/6, and no correlation between neighbours in either direction."""
    keys = np.array([[Rule().key(n, t)] for n in range(20) for t in range(20)], np.uint64)
    g = gumbel(keys, np.arange(1000)[None])
    assert np.isfinite(g).all() and len(np.unique(g)) == g.size
    assert abs(g.mean() - np.euler_gamma) < 0.01 and abs(g.var() - np.pi**2 / 6) < 0.02
    z = (g - g.mean()) / g.std()
    assert abs((z[:, 1:] * z[:, :-1]).mean()) < 0.01 and abs((z[1:] * z[:-1]).mean()) < 0.01


def test_of_equal_logits_the_lower_id_is_chosen_and_top_k_keeps_k():
    """Greedy and top-k are functions, whatever the ties."""
    assert draws([1.0, 2.0, 2.0, 0.0], Rule(), 3).tolist() == [0, 3, 0, 0]
    assert draws([0.0, 0.0, 0.0], Rule(1.0, top_k=2), 1000)[2] == 0


REFUSED = (
    (lambda c: Rule(-0.1), "temperature must be 0"),
    (lambda c: Rule(float("nan")), "temperature must be 0"),
    (lambda c: Rule(1.0, top_k=-1), "top-k keeps k tokens"),
    (lambda c: Rule(1.0, top_p=0.0), "top-p is a share"),
    (lambda c: Rule(1.0, top_p=1.1), "top-p is a share"),
    (lambda c: Rule(seed=-1), "a seed must not be negative"),
    (lambda c: check([], 1, c), "generation needs a prompt"),
    (lambda c: check([[1], []], 1, c), "prompt 1 has none"),
    (lambda c: check([[1] * 15], 6, c), "15, and 6 new ones make 21, T = 20"),
    (lambda c: check([[1, 23]], 1, c), "ids from 1 to 23, V = 23"),
    (lambda c: check([[-1]], 1, c), "ids from -1 to -1"),
    (lambda c: check([[1]], 0, c), "at least one new token"),
    (lambda c: Words(None, 23).ids("a", "prompt 0"), "a token for every byte"),
)


@pytest.mark.parametrize("ask, said", REFUSED)
def test_a_wrong_request_is_refused_with_a_way_out(ask, said):
    """*rule; values; way out*."""
    with pytest.raises(TParallelError, match=said) as e:
        ask(MODELS["gpt2"])
    assert isinstance(e.value, ConfigError | DataError) and "Use " in str(e.value)
    check([[1] * 14], 6, MODELS["gpt2"])  # as long as can be


def test_text_is_shown_while_it_comes_and_never_half_a_character():
    """Two prompts: the first grows, the second follows when it has ended; bytes of a character are
    held back until the last of them is there, or the text ends."""
    out = io.StringIO()
    words = Words(None, 259)
    ids = words.ids("Grüß", "prompt 0")
    stream = Stream(words, [ids[:2], [65]], out)
    seen = []
    for n in range(6):
        stream.tell(1, [66], ended=True)  # its turn has not come
        stream.tell(0, ids[2 : 2 + n], ended=n == 5)
        seen.append(out.getvalue())
    assert seen == ["Gr", "Gr", "Grü", "Grü", "Grüß", "Grüß\n---\n"]
    stream.tell(1, [66, 256, 195], ended=True)
    assert out.getvalue() == "Grüß\n---\nAB\ufffd\n"
