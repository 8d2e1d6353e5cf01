"""A chunk of consecutive layers: the loop of serial/model.py over some of the layers.

Which layers: blocks as evenly as can be, the embedding with the first, the head with the last.
"""

from ..comm.axis import pieces
from ..serial.model import kind
from ..serial.parameters import layer_names, stored_in


def layers_of_chunk(L: int, chunks: int, chunk: int) -> list[str]:
    """The layers of one of ``chunks`` parts; L need not be divisible."""
    embed, *blocks, head = layer_names(L)
    counts = pieces(L, chunks)
    start = sum(counts[:chunk])
    mine = blocks[start : start + counts[chunk]]
    return [embed] * (chunk == 0) + mine + [head] * (chunk == chunks - 1)


def units_of_chunk(L: int, chunks: int, chunk: int, tied: bool) -> list[str]:
    """What the chunk must store: its layers, and the shared table on both ends if tied."""
    layers = layers_of_chunk(L, chunks, chunk)
    return list(dict.fromkeys(unit for layer in layers for unit in stored_in(layer, tied)))


class Chunk:
    """``forward`` and ``backward`` over some layers; parameters come from, gradients go to, a
    store that knows who holds them (``zero/store.py``)."""

    def __init__(self, layers: list[str], functions: dict, store):
        self.layers, self.store = layers, store
        self.functions = {layer: functions[kind(layer)] for layer in layers}

    def forward(self, x):
        """The output, and one cache per layer."""
        caches = []
        for layer, p in self.store.gathered(self.layers):
            x, cache = self.functions[layer].forward(x, p)
            caches.append(cache)
            del p  # a gathered layer ends here, before the next one arrives
        return x, caches

    def backward_input(self, dy, caches):
        """dx, and what the weight half needs; ``caches`` is emptied on the way."""
        wcaches = []
        for layer, p in self.store.gathered(self.layers[::-1]):
            dy, wcache = self.functions[layer].backward_input(dy, caches.pop(), p)
            wcaches.append(wcache)
            del p
        return dy, wcaches

    def backward_weight(self, wcaches) -> None:
        for layer in reversed(self.layers):
            grads = self.functions[layer].backward_weight(wcaches.pop(0))
            self.store.add_grads(layer, grads)

    def backward(self, dy, caches):
        """Both halves, layer by layer: a layer's cache and what was gathered of its parameters
        are gone before the next one starts."""
        for layer, p in self.store.gathered(self.layers[::-1]):
            dy, wcache = self.functions[layer].backward_input(dy, caches.pop(), p)
            del p
            self.store.add_grads(layer, self.functions[layer].backward_weight(wcache))
            del wcache
        return dy
