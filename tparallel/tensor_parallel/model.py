"""The table of layers with ``tp`` bound: what serial/model.py's ``LAYERS`` becomes.

At tp = 1 it *is* ``LAYERS``, so that nothing is copied and nothing is communicated; the cut files
give the same bits there (a test says so).
"""

from functools import partial

from .. import kernels
from ..backend import xp
from ..config import Layout, ModelConfig
from ..serial.model import LAYERS, LayerFunctions
from . import block, embedding, head
from .loss import cross_entropy_backward, cross_entropy_forward
from .region import SequenceParallel, TensorParallel


def region(tp, model: ModelConfig, layout: Layout) -> TensorParallel:
    """f and g for this layout, over the axis ``tp``."""
    sharing = max(1, tp.size // model.Hkv)
    shared = tp.split(color=tp.rank // sharing) if sharing > 1 else None
    if layout.sp:
        regather = layout.sp == "regather"
        return SequenceParallel(tp, shared, layout.overlap, regather)
    return TensorParallel(tp, shared, layout.overlap)


def layer_functions(tp: TensorParallel, V: int) -> dict[str, LayerFunctions]:
    return LAYERS if tp.size == 1 else cut_layer_functions(tp, V)


def cut_layer_functions(tp: TensorParallel, V: int) -> dict[str, LayerFunctions]:
    return {
        "embed": LayerFunctions(
            partial(embedding.embed_forward, tp=tp, V=V),
            partial(embedding.embed_backward_input, tp=tp, V=V),
            partial(embedding.embed_backward_weight, tp=tp, V=V),
            partial(embedding.embed_backward, tp=tp, V=V),
        ),
        "block": finished(
            LayerFunctions(
                partial(block.block_forward, tp=tp),
                partial(block.block_backward_input, tp=tp),
                block.block_backward_weight,
                partial(block.block_backward, tp=tp),
            ),
            tp,
        ),
        "head": finished(
            LayerFunctions(
                partial(head.head_forward, tp=tp),
                partial(head.head_backward_input, tp=tp),
                head.head_backward_weight,
                partial(head.head_backward, tp=tp),
            ),
            tp,
        ),
    }


def finished(f: LayerFunctions, tp: TensorParallel) -> LayerFunctions:
    """The same layer, its gradients whole: the one place where shares are summed over tp."""

    def backward_weight(wcache):
        return tp.finish(f.backward_weight(wcache))

    def backward(dy, cache, p):
        dx, grads = f.backward(dy, cache, p)
        return dx, tp.finish(grads)

    return f._replace(backward_weight=backward_weight, backward=backward)


def loss_functions(axis, V: int):
    """(forward, backward) of the cross-entropy, over the axis ``tp``."""
    if axis.size == 1:
        return kernels.cross_entropy_forward, kernels.cross_entropy_backward
    return in_float32(partial(cross_entropy_forward, tp=axis, V=V), cross_entropy_backward)


def in_float32(forward, backward):
    """The same loss of logits in half: its sums need more digits."""

    def wide_forward(logits, targets, count):
        half = logits.dtype if logits.dtype.itemsize == 2 else None
        logits = logits.astype(xp.float32) if half else logits
        loss, cache = forward(logits, targets, count)
        return loss, (cache, half)

    def half_backward(cache):
        cache, half = cache
        dlogits = backward(cache)
        return dlogits.astype(half) if half else dlogits

    return wide_forward, half_backward
