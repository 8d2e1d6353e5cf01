"""One token from its logits, as often as the rule says; wrong requests; text as it comes."""

import io

import numpy as np
import pytest

from tparallel.config import ModelConfig
from tparallel.errors import ConfigError, DataError, TParallelError
from tparallel.generate import Rule
from tparallel.generate.rows import check
from tparallel.generate.sample import choose, gumbel, ordered
from tparallel.generate.text import Stream, Words

MODEL = ModelConfig(L=4, D=12, H=4, T=20, V=23, F=20)


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


def test_the_k_first_are_those_of_a_whole_sort():
    """Not all of a vocabulary is sorted for them; many scores are equal."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        B, V, k = rng.integers(1, 5), rng.integers(1, 40), int(rng.integers(0, 45))
        score = rng.integers(0, 9, (B, V)).astype(float)
        order = np.argsort(-score, axis=-1, kind="stable")[:, : k or None]
        found = ordered(score, np.broadcast_to(np.arange(V), score.shape), k)
        assert np.array_equal(found[1], order)
        assert np.array_equal(found[0], np.take_along_axis(score, order, -1))


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
        ask(MODEL)
    assert isinstance(e.value, ConfigError | DataError) and "Use " in str(e.value)
    check([[1] * 14], 6, MODEL)  # as long as can be


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
