"""Which boxes of which tensors lie where in this rank's flat vectors.

The store lays this tp rank's parts of a bucket of layers end to end and cuts the vector over dp:
a shard is a range of the flattened *part* of a tensor, and so some boxes of the tensor.  (``where``
says the same from the configuration alone; a test holds the two against each other.)
"""

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

from ..serial.parameters import shapes
from ..tensor_parallel.split import cut
from .box import Box, boxes, moved, shape_of


class Piece(NamedTuple):
    """A box of a parameter (of its moments, its master weights) in a bucket's vector."""

    name: str  # block.1.mlp.w_in
    box: Box  # in the whole tensor
    at: slice  # in the whole vector
    first: bool  # of the ranks that hold the same shard, is this the first?


def pieces(trainer, bucket: str, start: int, stop: int) -> Iterator[Piece]:
    """What lies in start:stop of a bucket's vector, end to end."""
    tp, part = trainer.mesh.tp, trainer.store.partitions[bucket]
    for (unit, name), held in part.at.items():
        a, b = max(held.start, start), min(held.stop, stop)
        mine = cut(name, shapes(trainer.model)[unit][name], tp.rank, tp.size)
        first = trainer.store.counted((unit, name))
        for box in boxes(part.shapes[unit, name], a - held.start, b - held.start):
            end = a + prod(shape_of(box))
            yield Piece(f"{unit}.{name}", moved(box, mine), slice(a, end), first)
            a = end


def origin(trainer, bucket: str, vector) -> int:
    """Where in the whole vector what this rank keeps of it begins."""
    part, shard = trainer.store.partitions[bucket], trainer.store.shard
    return 0 if len(vector) == part.padded else shard.rank * part.shard
