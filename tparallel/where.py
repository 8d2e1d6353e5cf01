"""Who holds which part of a parameter, of its gradient and of its moments: from the configuration
alone, with the tables that training itself uses, and without a message.

A parameter is cut twice.  First over tp, along one dim (``tensor_parallel/split.py``).  Then this
tp rank's parts of a whole layer (or of a bucket of layers) are laid end to end as one flat vector,
and from some ZeRO stage on each dp rank keeps one shard of that vector (``zero/partition.py``): a
shard's border may well run through the middle of a matrix.
"""

import difflib
from collections.abc import Hashable, Iterable
from fnmatch import fnmatchcase
from typing import NamedTuple

import numpy as np

from .comm.mesh import Coords, coords
from .config import Layout, ModelConfig, TrainConfig
from .errors import ConfigError
from .pipeline_parallel.schedules import make
from .pipeline_parallel.stage import cut_layers, stored_units
from .serial.parameters import shapes
from .tensor_parallel.split import SPLIT_DIM, is_split, part, shard_shape
from .zero.partition import Partition, buckets
from .zero.precision import storage_dtype
from .zero.store import SHARDED_FROM


class Held(NamedTuple):
    """What one rank keeps of a parameter.  Ranges count elements of its flat vector."""

    rank: int
    at: Coords
    cut: tuple[slice, ...]  # this tp rank's part of the whole tensor
    vector: slice  # where that part, flattened, lies in the flat vector
    shard: slice  # the part of the flat vector whose sum, under ZeRO, ends on this rank
    kept: dict[str, slice]  # params, grads, optimizer: the range that is stored here


class Sum(NamedTuple):
    """One axis of the mesh, and whether a gradient is summed over it."""

    axis: str
    groups: list[tuple[int, ...]]  # ranks that sum theirs together; none: no sum
    why: str


def names(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """{full name: shape of the whole}, in the order of the forward pass."""
    return {f"{unit}.{n}": shape for unit, p in shapes(model).items() for n, shape in p.items()}


def find(pattern: str, model: ModelConfig) -> list[str]:
    """The parameter of that name, those of a layer, or what ``block.*.mlp.w_in`` matches.

    Errors: ConfigError with the nearest names where there is none.
    """
    known = names(model)
    found = [n for n in known if fnmatchcase(n, pattern) or n.startswith(f"{pattern}.")]
    if not found:
        near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.5) or [*known][:3]
        raise ConfigError(
            f"a parameter must have a name that the model knows: {pattern!r} is none of "
            f"{len(known)}. Use {', '.join(near)}, or '*' to see them all."
        )
    return found


def where(name: str, model: ModelConfig, train: TrainConfig, layout: Layout) -> list[Held]:
    """What every rank that stores the parameter keeps of it, in rank order."""
    unit, own = _unit(name, model)
    return [
        _held(rank, unit, own, model, train, layout) for rank, _ in _holders(unit, model, layout)
    ]


def stored_on(stage: int, model: ModelConfig, layout: Layout) -> list[str]:
    """The layers (and the shared table, if tied) whose parameters a pipeline stage stores."""
    schedule = make(layout.schedule, layout.pp, layout.microbatches, layout.chunks)
    layers = cut_layers(model, schedule.chunks, layout.cut)
    mine = [layer for chunk in schedule.chunks_of(stage) for layer in layers[chunk]]
    return stored_units(mine, model.tied)


def bucket_of(
    unit: str, at: Coords, model: ModelConfig, train: TrainConfig, layout: Layout
) -> list[str]:
    """The layers that share a flat vector with this one on a rank: itself alone, by default."""
    units = (
        (u, {n: np.broadcast_to(0.0, s) for n, s in _shapes(u, at, model, layout).items()})
        for u in stored_on(at.pp, model, layout)
    )
    limit = layout.bucket_bytes // storage_dtype(train.dtype).itemsize
    return next([*joined] for joined in buckets(units, limit) if unit in joined)


def partition(
    unit: str, at: Coords, model: ModelConfig, train: TrainConfig, layout: Layout
) -> Partition:
    """The flat vector in which a rank holds a layer, and its shards."""
    whole: dict[Hashable, tuple[int, ...]] = {
        (u, n): shape
        for u in bucket_of(unit, at, model, train, layout)
        for n, shape in _shapes(u, at, model, layout).items()
    }
    groups = layout.shard_group and not layout.secondary
    return Partition(whole, layout.shard_group if groups else layout.dp)


def sums(name: str, model: ModelConfig, layout: Layout) -> list[Sum]:
    """For each axis with more than one rank: who sums this gradient with whom, and why."""
    unit, own = _unit(name, model)
    holders = _holders(unit, model, layout)
    shared = len({at.pp for _, at in holders}) > 1
    out = []
    if layout.dp > 1:
        out.append(Sum("dp", _groups(holders, "dp"), DIFFERENT_ROWS))
    if layout.tp > 1:
        out.append(_over_tp(own, holders, model, layout))
    if layout.pp > 1:
        out.append(Sum("pp", _groups(holders, "pp"), BOTH_ENDS) if shared else ONE_STAGE)
    return out


def _over_tp(own: str, holders: Iterable, model: ModelConfig, layout: Layout) -> Sum:
    sharing = layout.tp // model.Hkv
    if "kv" in own and sharing > 1:
        rings = _groups(holders, "tp")
        groups = [r[i : i + sharing] for r in rings for i in range(0, len(r), sharing)]
        return Sum("tp", groups, SHARED_HEAD)
    if layout.sp and "norm" in own:
        return Sum("tp", _groups(holders, "tp"), OWN_TOKENS)
    return Sum("tp", [], OWN_SLICE if is_split(own) else SAME_ON_ALL)


DIFFERENT_ROWS = (
    "They hold the same numbers, but each saw other rows of the batch; the loss adds up all rows, "
    "so its gradient is the sum of theirs."
)
OWN_SLICE = (
    "The parameter is cut: each tp rank computes the gradient of its own slice, completely, and no "
    "other tp rank holds those numbers."
)
SAME_ON_ALL = (
    "Every tp rank holds all of it and computes the same gradient by itself, because the "
    "activations and the gradients that reach it were already summed over tp, layer by layer."
)
SHARED_HEAD = (
    "There are fewer key/value heads than tp ranks: these hold the same one, each for query heads "
    "of its own, and its gradient is the sum over all query heads that read it."
)
OWN_TOKENS = (
    "Under sequence parallelism each tp rank computes norms of its own tokens only, and so has "
    "their share of the gradient."
)
BOTH_ENDS = (
    "The first stage looks tokens up in this table, the last one scores them with it; each has the "
    "gradient of its own use, and the two copies stay equal because both take the sum."
)
ONE_STAGE = Sum("pp", [], "Only one stage uses it: its gradient arises there and nowhere else.")


def unit_of(name: str, model: ModelConfig) -> str:
    """``block.1.mlp.w_in`` is stored with ``block.1``."""
    return _unit(name, model)[0]


def _unit(name: str, model: ModelConfig) -> tuple[str, str]:
    """``block.1.mlp.w_in`` -> ``block.1``, ``mlp.w_in``."""
    full = find(name, model)[0]
    return next((u, n) for u, p in shapes(model).items() for n in p if f"{u}.{n}" == full)


def _holders(unit: str, model: ModelConfig, layout: Layout) -> list[tuple[int, Coords]]:
    places = [(rank, coords(rank, layout)) for rank in range(layout.ranks)]
    stages = [unit in stored_on(stage, model, layout) for stage in range(layout.pp)]
    return [(rank, at) for rank, at in places if stages[at.pp]]


def _held(
    rank: int, unit: str, own: str, model: ModelConfig, train: TrainConfig, layout: Layout
) -> Held:
    at, whole = coords(rank, layout), shapes(model)[unit][own]
    cut = [slice(0, size) for size in whole]
    if is_split(own):
        cut[SPLIT_DIM[own]] = part(whole[SPLIT_DIM[own]], at.tp, layout.tp)
    flat = partition(unit, at, model, train, layout)
    place = at.dp % flat.n  # in its shard group
    vector, shard = flat.at[unit, own], slice(place * flat.shard, (place + 1) * flat.shard)
    mine = overlap(vector, shard)
    kept = {kind: mine if layout.zero >= stage else vector for kind, stage in SHARDED_FROM.items()}
    return Held(rank, at, tuple(cut), vector, shard, kept)


def _shapes(
    unit: str, at: Coords, model: ModelConfig, layout: Layout
) -> dict[str, tuple[int, ...]]:
    """What a rank holds of a layer, by tp."""
    whole = shapes(model)[unit].items()
    return {name: shard_shape(name, shape, at.tp, layout.tp) for name, shape in whole}


def overlap(a: slice, b: slice) -> slice:
    """What two ranges share; an empty range at the start of ``a`` if nothing."""
    start, stop = max(a.start, b.start), min(a.stop, b.stop)
    return slice(start, stop) if start < stop else slice(a.start, a.start)


def _groups(holders: Iterable[tuple[int, Coords]], axis: str) -> list[tuple[int, ...]]:
    """The ranks that differ in this coordinate only."""
    rings: dict[Coords, list[int]] = {}
    for rank, at in holders:
        rings.setdefault(at._replace(**{axis: 0}), []).append(rank)
    return [tuple(ranks) for ranks in rings.values()]
