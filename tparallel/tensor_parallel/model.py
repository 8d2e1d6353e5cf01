"""The table of layers with ``tp`` bound: what serial/model.py's ``LAYERS`` becomes.

At tp = 1 it *is* ``LAYERS``, so that nothing is copied and nothing is communicated; the cut files
give the same bits there (a test says so).
"""

from functools import partial

from ..serial import loss as serial_loss
from ..serial.model import LAYERS, LayerFunctions
from .block import block_backward_input, block_backward_weight, block_forward
from .embedding import embed_backward_input, embed_backward_weight, embed_forward
from .head import head_backward_input, head_backward_weight, head_forward
from .loss import cross_entropy_backward, cross_entropy_forward


def layer_functions(tp, V: int) -> dict[str, LayerFunctions]:
    return LAYERS if tp.size == 1 else cut_layer_functions(tp, V)


def cut_layer_functions(tp, V: int) -> dict[str, LayerFunctions]:
    return {
        "embed": LayerFunctions(
            partial(embed_forward, tp=tp, V=V),
            partial(embed_backward_input, tp=tp, V=V),
            partial(embed_backward_weight, tp=tp, V=V),
        ),
        "block": LayerFunctions(
            partial(block_forward, tp=tp),
            partial(block_backward_input, tp=tp),
            block_backward_weight,
        ),
        "head": LayerFunctions(
            partial(head_forward, tp=tp),
            partial(head_backward_input, tp=tp),
            head_backward_weight,
        ),
    }


def loss_functions(tp, V: int):
    """(forward, backward) of the cross-entropy."""
    if tp.size == 1:
        return serial_loss.cross_entropy_forward, serial_loss.cross_entropy_backward
    return partial(cross_entropy_forward, tp=tp, V=V), cross_entropy_backward
