"""The text of ``serial/`` as it is."""

from ..serial.activation import gelu_backward, gelu_forward
from ..serial.adamw import adamw_update
from ..serial.heads import heads_backward, heads_forward, probabilities
from ..serial.norm import layernorm_backward_input, layernorm_backward_weight, layernorm_forward


def scores_again(q, kv, drop):
    """What heads_backward needs of the scores, from q and kv alone."""
    return probabilities(q, kv)


def kept_scores(T: int, dropout: float = 0.0) -> int:
    """Numbers that attention keeps for one head between forward and backward: its probabilities."""
    return T * T


__all__ = [
    "adamw_update",
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
