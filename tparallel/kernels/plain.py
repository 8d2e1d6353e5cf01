"""The text of ``serial/`` as it is."""

from ..backend import xp
from ..serial.activation import activation_backward, activation_forward
from ..serial.adamw import adamw_update
from ..serial.heads import heads_backward, heads_forward, probabilities
from ..serial.loss import cross_entropy_backward, cross_entropy_forward
from ..serial.norm import norm_backward_input, norm_backward_weight, norm_forward
from ..serial.rope import rope_backward, rope_forward


def scores_again(q, kv, drop):
    """What heads_backward needs of the scores, from q and kv alone."""
    return probabilities(q, kv)


def rows_backward(shape, numbers, dx):
    """The gradient of a table of which rows were looked up; one that was twice collects twice."""
    grad = xp.zeros(shape, dx.dtype)
    xp.add.at(grad, numbers, dx)
    return grad


def kept_scores(T: int, dropout: float = 0.0) -> int:
    """Numbers that attention keeps for one head between forward and backward: its probabilities."""
    return T * T


__all__ = [
    "activation_backward",
    "activation_forward",
    "adamw_update",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "heads_backward",
    "heads_forward",
    "kept_scores",
    "norm_backward_input",
    "norm_backward_weight",
    "norm_forward",
    "rope_backward",
    "rope_forward",
    "rows_backward",
    "scores_again",
]
