"""One optimizer step on the part of each vector that this rank updates.

State, per bucket: Adam's moments, and a float32 master copy where parameters are kept in half.
The update is elementwise, so that any cut of the vectors gives the same bits; it walks in chunks
that stay in the cache, so that its temporaries are small.

Source: Rajbhandari et al. 2020, section 5.1
"""

from collections.abc import Iterator

import numpy as np

from ..backend import xp
from ..config import TrainConfig
from ..kernels import HALVES, adamw_update
from ..kernels import name as kernels
from ..serial.adamw import learning_rate, sgd_update
from ..serial.parameters import decayed
from .offload import Placement
from .partition import Partition

# elements: a kernel's worth; what a CPU's cache holds, unless the kernel makes no temporaries
CHUNK = 1 << (26 if xp is not np else 20 if kernels == "fast" else 15)


class Optimizer:
    """``state``: {"master" | "m" | "v": {bucket: vector}}, whatever the training needs."""

    def __init__(self, train: TrainConfig, placement: Placement):
        self.train, self.place = train, placement
        self.reads_halves = HALVES and train.optimizer == "adamw"
        kinds = (["master"] if train.is_half else []) + ["m", "v"] * (train.optimizer == "adamw")
        self.state: dict[str, dict] = {kind: {} for kind in kinds}

    def add(self, bucket: str, part) -> None:
        """Begin the state of a bucket; ``part`` holds the first values of what is updated here."""
        for kind, held in self.state.items():
            held[bucket] = self.place.zeros(len(part), part.dtype)
            if kind == "master":
                self.place.write(held[bucket], part)

    def update(
        self, bucket: str, partition: Partition, start: int, w, g, scale: float, step: int
    ) -> None:
        """w ← the optimizer's answer to the gradient ``scale`` · g.  ``w`` and ``g`` are
        flat[start:...] of the bucket; which names decay is read from its partition."""
        c, lr = self.train, learning_rate(step, self.train)
        for decays in (True, False):
            decay = c.weight_decay if decays else 0.0
            for s in _chunks(partition, start, start + len(w), decays):
                with self.place.here({k: held[bucket][s] for k, held in self.state.items()}) as at:
                    grad = g[s] if self.reads_halves else g[s].astype(c.master_dtype, copy=False)
                    value = at.get("master", w[s])
                    if c.optimizer == "sgd":
                        sgd_update(value, grad, lr, decay, scale)
                    else:
                        adamw_update(value, grad, at["m"], at["v"], step, lr, decay, c, scale)
                    if "master" in at:
                        w[s] = value


def _chunks(partition: Partition, start: int, stop: int, decays: bool) -> Iterator[slice]:
    """The parts of flat[start:stop] whose names decay, or do not, in pieces of at most CHUNK."""

    def wanted(key) -> bool:
        _, name = key
        return decayed(name) == decays

    for span in partition.spans(start, stop, wanted):
        for a in range(span.start, span.stop, CHUNK):
            yield slice(a, min(a + CHUNK, span.stop))
