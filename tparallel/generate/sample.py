"""Which token comes next: greedy, temperature, top-k, top-p, from logits whose V is cut over tp.

A token is drawn by the Gumbel trick: argmax_v (logit_v / temperature + G_v) with independent
G_v = −log(−log U_v) has the probabilities softmax(logits / temperature).  U_v is looked up, not
drawn: a hash of the seed, the number of the prompt, the position and the token's id.  So no layout,
no batch and no order changes a sample, and every rank knows the noise of its own columns.

A maximum needs no gathered logits: each rank offers its best candidates, all choose among them.

    greedy, temperature      1 candidate of each rank
    top-k                    k of each rank: the k largest of all are among them
    top-p without top-k      all logits, gathered: how many are kept depends on every one of them

Temperature comes first, then top-k, then top-p on what is left, renormalised.  Of equal logits the
lower id comes first, and top-k keeps exactly k.

Shapes:        logits (B, V/tp) of the rows' last tokens; keys (B, 1); the result (B) int64
Communicates:  all_gather over tp of B candidates × (value, id) in float64; or of B V/tp logits
Source:        Gumbel 1954, Maddison et al. 2014 (section 2); Fan et al. 2018 (top-k);
               Holtzman et al. 2020, section 3.1 (top-p)
"""

from dataclasses import dataclass
from math import isfinite

from ..backend import xp
from ..comm.axis import Axis
from ..errors import ConfigError
from ..serial.dropout import GOLDEN, fold, mix
from ..tensor_parallel.split import part


@dataclass(frozen=True)
class Rule:
    """How the next token is chosen.  ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 keep
    every token."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if not (isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(
                f"temperature must be 0 (greedy) or a positive number: it is {self.temperature}. "
                "Use --temperature 1 for the model's own probabilities."
            )
        if self.top_k < 0:
            raise ConfigError(
                f"top-k keeps k tokens, 0 all of them: it is {self.top_k}. Use --top-k 0."
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError(
                f"top-p is a share of the probability in (0, 1]: it is {self.top_p}. Use --top-p 1 "
                "for all tokens."
            )
        if self.seed < 0:
            raise ConfigError(f"a seed must not be negative: it is {self.seed}. Use --seed 0.")

    @property
    def cuts(self) -> bool:
        """Does a token's rank among all tokens matter?"""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1)

    def candidates(self, V: int) -> int:
        """How many a rank offers, of the V that it has; 0: all of its logits are gathered."""
        if not self.cuts:
            return 1
        return min(self.top_k, V)

    def key(self, prompt: int, position: int) -> int:
        """Of the noise for the token at a position of the text that a prompt begins."""
        return fold(0, "sample", self.seed, prompt, position)


def choose(logits, rule: Rule, keys, tp: Axis, V: int):
    """The next id of each row, on every rank."""
    first = part(V, tp.rank, tp.size).start
    if rule.cuts and not rule.top_k:
        logits, first = gathered(logits, tp, V), 0
    score = logits.astype("float64")
    ids = xp.broadcast_to(xp.arange(first, first + score.shape[1]), score.shape)
    if rule.temperature:
        score /= rule.temperature
        if not rule.cuts:
            score += gumbel(keys, ids)
    if rule.candidates(V):
        score, ids = best(score, ids, rule.candidates(V), tp, V)
    if rule.cuts:
        if rule.top_p < 1:
            score, ids = ordered(score, ids)
            score = most_probable(score, rule.top_p)
        score = score + gumbel(keys, ids)
    return xp.take_along_axis(ids, score.argmax(-1)[:, None], -1)[:, 0]


def best(score, ids, k: int, tp: Axis, V: int):
    """The k largest scores of all ranks, and their ids: (B, k) each, in falling order."""
    score, ids = ordered(score, ids, k)
    if tp.size == 1:
        return score, ids
    B, n = score.shape
    offered = xp.full((B, min(k, -(-V // tp.size)), 2), -xp.inf)  # as many from every rank
    offered[:, :n, 0], offered[:, :n, 1] = score, ids
    found = tp.all_gather(offered, what="candidates").reshape(tp.size, B, -1, 2)
    found = found.swapaxes(0, 1).reshape(B, -1, 2)  # by rank, so by id where scores are equal
    return ordered(found[..., 0], xp.where(xp.isinf(found[..., 1]), 0, found[..., 1]), k)


def ordered(score, ids, k: int = 0):
    """The k first (0: all) in falling order; of equals the one that comes first here."""
    if 1 < k < score.shape[1]:  # sort those columns only in which a row has one of its k
        at = score.shape[1] - k
        least = xp.partition(score, at, axis=-1)[:, at, None]
        some = ~(score < least).all(0)
        score, ids = score[:, some], ids[:, some]
    if k == 1:
        order = score.argmax(-1)[:, None]
    else:
        order = xp.argsort(-score, axis=-1, kind="stable")[:, : k or None]
    return xp.take_along_axis(score, order, -1), xp.take_along_axis(ids, order, -1).astype("int64")


def most_probable(score, top_p: float):
    """The scores, in falling order, −∞ behind the fewest whose probabilities reach top_p."""
    e = xp.exp(score - score[:, :1])
    p = e / e.sum(-1, keepdims=True)
    before = xp.cumsum(p, axis=-1) - p
    return xp.where(before < top_p, score, -xp.inf)


def gumbel(keys, ids):
    """G (B, n) of ids (B, n): finite, 52 bits each."""
    hashed = mix(ids.astype("uint64") * xp.uint64(GOLDEN) + keys)
    u = ((hashed >> 12).astype("float64") + 0.5) * 2.0**-52
    return -xp.log(-xp.log(u))


def gathered(logits, tp: Axis, V: int):
    """(B, V/tp) of each rank -> (B, V)."""
    if tp.size == 1:
        return logits
    B, n = logits.shape
    filled = xp.full((B, -(-V // tp.size)), -xp.inf, dtype=logits.dtype)
    filled[:, :n] = logits
    parts = tp.all_gather(filled, what="logits").reshape(tp.size, B, -1)
    each = [part(V, rank, tp.size) for rank in range(tp.size)]
    return xp.concatenate([p[:, : w.stop - w.start] for p, w in zip(parts, each)], axis=1)
