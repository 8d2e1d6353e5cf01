"""The text of ``serial/`` as it is."""

from ..backend import xp
from ..serial.activation import gelu_backward, gelu_forward
from ..serial.adamw import adamw_update
from ..serial.heads import heads_backward, heads_forward, probabilities
from ..serial.loss import cross_entropy_backward, cross_entropy_forward
from ..serial.norm import layernorm_backward_input, layernorm_backward_weight, layernorm_forward


def scores_again(q, kv, drop):
    """What heads_backward needs of the scores, from q and kv alone."""
    return probabilities(q, kv)


def add_rows(table, numbers, x) -> None:
    """table[numbers[i]] += x[i] for every i, one after the other: a number may occur twice."""
    xp.add.at(table, numbers, x)


def kept_scores(T: int, dropout: float = 0.0) -> int:
    """Numbers that attention keeps for one head between forward and backward: its probabilities."""
    return T * T


__all__ = [
    "adamw_update",
    "add_rows",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "gelu_backward",
    "gelu_forward",
    "heads_backward",
    "heads_forward",
    "kept_scores",
    "layernorm_backward_input",
    "layernorm_backward_weight",
    "layernorm_forward",
    "scores_again",
]
