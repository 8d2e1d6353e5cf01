"""The loop over layers: tokens -> embed -> block.0 ... block.L-1 -> head -> logits.

``LAYERS`` is the table that the parallel methods replace: what a kind of layer does, forward
and in the two halves of backward.
"""

from collections.abc import Callable
from typing import NamedTuple

from .block import block_backward, block_backward_input, block_backward_weight, block_forward
from .context import ORIGIN, Context
from .embedding import (
    embed_backward,
    embed_backward_input,
    embed_backward_weight,
    embed_forward,
)
from .head import head_backward, head_backward_input, head_backward_weight, head_forward
from .parameters import stored_in


class LayerFunctions(NamedTuple):
    forward: Callable  # x, p, at -> y, cache
    backward_input: Callable  # dy, cache, p -> dx, wcache
    backward_weight: Callable  # wcache -> grads
    backward: Callable  # dy, cache, p -> dx, grads: both halves


LAYERS = {
    "embed": LayerFunctions(
        embed_forward, embed_backward_input, embed_backward_weight, embed_backward
    ),
    "block": LayerFunctions(
        block_forward, block_backward_input, block_backward_weight, block_backward
    ),
    "head": LayerFunctions(head_forward, head_backward_input, head_backward_weight, head_backward),
}


def kind(layer: str) -> str:
    """``block.3`` is a ``block``."""
    return layer.split(".")[0]


def model_forward(tokens, params, at: Context = ORIGIN):
    """logits (B, T, V) of tokens (B, T), and one cache per layer."""
    x, caches = tokens, {}
    for layer in layers_of(params):
        p = layer_view(params, layer)
        x, caches[layer] = LAYERS[kind(layer)].forward(x, p, at=at.of(layer))
    return x, caches


def model_backward(dlogits, caches, params, grads):
    """Adds every parameter's gradient into ``grads``, a dict shaped like ``params``."""
    dx = dlogits
    for layer in reversed(layers_of(params)):
        p = layer_view(params, layer)
        dx, new = LAYERS[kind(layer)].backward(dx, caches.pop(layer), p)
        add_grads(grads, layer, new)


def layers_of(params):
    return [layer for layer in params if layer != "vocab"]


def layer_view(params, layer):
    """What the layer's functions see: its own parameters and, if tied, the shared table."""
    p: dict = {}
    for unit in stored_in(layer, tied="vocab" in params):
        p |= params[unit]
    return p


def add_grads(grads, layer, new):
    """grads += new; both uses of a tied table land in the same place."""
    for unit in stored_in(layer, tied="vocab" in grads):
        for name in grads[unit]:
            grads[unit][name] += new[name]
