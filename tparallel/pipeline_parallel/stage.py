"""Which layers a chunk holds, and the loop of serial/model.py over them.

The embedding goes with the first blocks, the head with the last.  ``cut`` says where the cuts are:

``even``  as many blocks everywhere as can be; the head comes on top on the last chunk
``cost``  so that the slowest chunk is as fast as can be: the head's product with the vocabulary
          counts, which is a dozen blocks' work in a small model with a large vocabulary
"""

from typing import Any

from ..comm.cut import pieces
from ..config import ModelConfig
from ..errors import LayoutError
from ..places import offered
from ..serial.context import ORIGIN, Context
from ..serial.model import kind
from ..serial.parameters import layer_names, stored_in


def cut_layers(c: ModelConfig, chunks: int, cut: str = "even") -> list[list[str]]:
    """The layers of every chunk; L need not be divisible."""
    if chunks > c.L:
        raise LayoutError(
            f"every chunk of a pipeline needs a block: L = {c.L}, {chunks} chunks. Use fewer "
            f"stages or chunks, or L of {chunks} or more."
        )
    embed, *blocks, head = layer_names(c.L)
    counts = pieces(c.L, chunks) if cut == "even" else by_cost(c, chunks)
    out = []
    for count in counts:
        out.append(blocks[:count])
        blocks = blocks[count:]
    out[0].insert(0, embed)
    out[-1].append(head)
    return out


def by_cost(c: ModelConfig, chunks: int) -> list[int]:
    """Blocks per chunk, such that the costliest chunk is as cheap as can be; of equals, the most
    even.  Dynamic programming: the best way to put n blocks into the first k chunks, for all n."""
    cost = layer_cost(c)
    best = {0: (0.0, 0.0, ())}  # blocks -> (costliest chunk, sum of squares, blocks per chunk)
    for k in range(chunks):
        ends = cost["embed"] * (k == 0) + cost["head"] * (k == chunks - 1)
        ways: dict[int, list] = {}
        for n, (worst, squares, counts) in best.items():
            for mine in range(c.L - n - (chunks - 1 - k), 0, -1):
                here = mine * cost["block"] + ends
                way = (max(worst, here), squares + here**2, (*counts, mine))
                ways.setdefault(n + mine, []).append(way)
        best = {n: min(found, key=lambda way: way[:2]) for n, found in ways.items()}
    return list(best[c.L][2])


def layer_cost(c: ModelConfig) -> dict[str, float]:
    """Multiply-adds per token in forward.  Backward is twice that, for each of them alike; a
    block's attention looks at T positions, of which the causal mask leaves half.

    Source: Narayanan et al. 2021, appendix
    """
    attention = 2 * c.D * c.K * (c.H + c.Hkv) + c.T * c.H * c.K
    block = attention + (3 if c.mlp == "swiglu" else 2) * c.D * c.F
    return {"embed": 0.0, "block": float(block), "head": float(c.D * c.V)}


def stored_units(layers: list[str], tied: bool) -> list[str]:
    """What a rank with these layers must store: them, or the table that two of them share."""
    return list(dict.fromkeys(unit for layer in layers for unit in stored_in(layer, tied)))


class Chunk:
    """``forward`` and ``backward`` over some layers; parameters come from, gradients go to, a
    store that knows who holds them (``zero/store.py``)."""

    def __init__(self, layers: list[str], functions: dict, store: Any):
        self.layers, self.store = layers, store
        self.functions = {layer: functions[kind(layer)] for layer in layers}

    def forward(self, x, at: Context = ORIGIN):
        """The output, and one cache per layer."""
        caches = []
        for layer, p in self.store.gathered(self.layers):
            x, cache = self.functions[layer].forward(x, p, at=at.of(layer))
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

    def backward_weight(self, wcaches: list) -> None:
        for layer in reversed(self.layers):
            with offered(self.store.empty_places(layer)):
                grads = self.functions[layer].backward_weight(wcaches.pop(0))
            self.store.add_grads(layer, grads)

    def backward(self, dy, caches):
        """Both halves, layer by layer: a layer's cache and what was gathered of its parameters
        are gone before the next one starts."""
        for layer, p in self.store.gathered(self.layers[::-1]):
            with offered(self.store.empty_places(layer)):
                dy, grads = self.functions[layer].backward(dy, caches.pop(), p)
            del p
            self.store.add_grads(layer, grads)
            del grads
        return dy
