"""Is what must be equal on several ranks still equal?  A cheap hash of each copy, compared.

Copies are: parameters and moments over dp where a ZeRO stage does not shard them, what is not cut
over tp, a table that both ends of the pipeline share; the batch, of which every rank has read all;
the configuration, with the seed that all random numbers follow from.  Nothing of this is compared
by training itself: a bit that flips in one copy stays there, and no loss shows it.

Communicates:  an allgather of one 32-bit hash per tensor held, with its name
"""

import zlib
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np

from ..backend import to_host
from ..config import as_dict
from ..errors import ReplicaError
from ..tensor_parallel.split import is_split


class Copy(NamedTuple):
    """What a hash is of.  Two ranks that hold the same ``Copy`` must hold the same numbers."""

    kind: str  # parameter, m, v, batch, configuration
    name: str = ""  # block.1.mlp.w_in
    part: tuple = ()  # which elements, if not all of them; which tp rank's

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".strip()


def check(trainer: Any, step: int, *batch: np.ndarray) -> None:
    """Compare all copies.  Every rank must call it.  Errors: ReplicaError, the same on each."""
    comm = trainer.mesh.comm
    found = differing(comm.allgather(hashes(trainer, *batch)))
    if found:
        raise ReplicaError(
            f"copies must be equal on every rank that holds them; after step {step + 1} "
            f"{len(found)} differ: {'; '.join(found[:3])}. Go back to a checkpoint from before, "
            "and suspect that rank's memory."
        )


def hashes(trainer: Any, *batch: np.ndarray) -> dict[Copy, int]:
    """{copy: hash} of everything that this rank holds and another may hold too."""
    store, out = trainer.store, {}
    kinds = {"parameter": store.params, **dict(zip("mv", store.moments))}
    for kind, vectors in kinds.items():
        for bucket, flat in vectors.items():
            part = store.partitions[bucket]
            start = store.shard.rank * part.shard if len(flat) < part.padded else 0
            for (unit, name), at in part.at.items():
                a, b = max(at.start, start), min(at.stop, start + len(flat))
                if a < b:
                    mine = (trainer.mesh.tp.rank,) if is_split(name) else ()
                    copy = Copy(kind, f"{unit}.{name}", (a - at.start, b - at.start, *mine))
                    out[copy] = _hash(flat[a - start : b - start])
    configs = [as_dict(c) for c in (trainer.model, trainer.train, trainer.layout)]
    out[Copy("configuration")] = zlib.crc32(repr(configs).encode())
    for name, rows in zip(("tokens", "targets"), batch):
        out[Copy("batch", name)] = _hash(rows)
    return out


def differing(everyone: list[dict[Copy, int]]) -> list[str]:
    """``parameter block.1.mlp.w_in: rank 3 is alone against ranks 0, 1, 2``, of each that is."""
    held: dict[Copy, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for rank, mine in enumerate(everyone):
        for copy, value in mine.items():
            held[copy][value].append(rank)
    out = []
    for copy, by_value in held.items():
        if len(by_value) > 1:
            *few, most = sorted(by_value.values(), key=len)
            others = ", ".join(_ranks(ranks) for ranks in few)
            out.append(f"{copy}: {others} against {_ranks(most)}")
    return out


def _ranks(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def _hash(a: Any) -> int:
    return zlib.crc32(np.ascontiguousarray(to_host(a)).data)
