"""The share of the model that one rank is responsible for, in numbers."""

from typing import NamedTuple

from ..config import Layout, ModelConfig, TrainConfig
from ..pipeline_parallel.schedule import Schedule
from ..pipeline_parallel.schedules import make
from ..pipeline_parallel.stage import by_cost

ITEMSIZE = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}  # as stored and sent


class Part(NamedTuple):
    dp: int  # the rank's place on each axis; tp varies fastest, then pp, then dp
    pp: int
    tp: int
    chunks: dict[int, int]  # of this stage: number of the chunk, and its blocks
    V: int  # rows of the vocabulary
    first: bool  # the stage with the embedding
    last: bool  # the stage with the head

    @property
    def blocks(self) -> int:
        return sum(self.chunks.values())


class Unit(NamedTuple):
    """What ZeRO cuts and moves at once: a layer, several of them joined in a bucket, or the table
    that two layers share if tied."""

    elements: int  # parameters that the rank is responsible for
    users: tuple[str, ...]  # the layers of this stage that use them

    @property
    def visits(self) -> int:
        """How often a pass through the stage comes to it: a table at both ends twice."""
        return 2 if self.users == ("embed", "head") else 1


class Kinds(NamedTuple):
    """What an architecture changes in the numbers."""

    norm: int  # n: vectors of D in a norm: gain and shift, or gain alone
    inner: int  # g: vectors of F between the mlp's two products: 1, or 2 with a gate
    qkv_bias: int  # q: is there one?
    out_bias: int  # b: and after the products with W_out, and with W_in?


def kinds(c: ModelConfig) -> Kinds:
    return Kinds(
        2 if c.norm == "layernorm" else 1,
        2 if c.mlp == "swiglu" else 1,
        int(c.bias != "none"),
        int(c.bias == "all"),
    )


def part(c: ModelConfig, layout: Layout, rank: int) -> Part:
    rest, tp = divmod(rank, layout.tp)
    dp, pp = divmod(rest, layout.pp)
    where = schedule(layout).placement
    n = len(where)
    blocks = by_cost(c, n) if layout.cut == "cost" else [cut(c.L, n, chunk) for chunk in range(n)]
    chunks = {chunk: blocks[chunk] for chunk in range(n) if where[chunk] == pp}
    return Part(dp, pp, tp, chunks, cut(c.V, layout.tp, tp), pp == where[0], pp == where[-1])


def schedule(layout: Layout) -> Schedule:
    """Which stage holds which chunk, and what it computes in which order."""
    return make(layout.schedule, layout.pp, layout.microbatches, layout.chunks)


def parts(c: ModelConfig, layout: Layout) -> list[Part]:
    """One for every rank of the job, in the order of ranks."""
    return [part(c, layout, rank) for rank in range(layout.ranks)]


def cut(size: int, n: int, rank: int) -> int:
    """Piece ``rank`` of ``size`` cut n ways, as equal as can be, the longer pieces first."""
    return size // n + (rank < size % n)


def kv_heads(c: ModelConfig, t: int) -> int:
    """Key/value heads of a rank: one if there are fewer than ranks."""
    return max(1, c.Hkv // t)


def units(c: ModelConfig, train: TrainConfig, layout: Layout, own: Part) -> list[Unit]:
    """Elements of each unit, with t = tp, V this rank's rows of the vocabulary, and n, g, q, b from
    the architecture (``Kinds``):

    block  (2 n + 2 b) D + ((2 D + q) H K + ((g + 1) D + g b) F) / t + 2 (D + q) K ⌈Hkv / t⌉
           norms, biases after a sum | what tp cuts | key/value heads, of which each rank has one
    embed  T D (learned positions) + V D          head  n D + V D
    tied   T D and n D, and V D once for both
    """
    D, F, t, (n, g, q, b) = c.D, c.F, layout.tp, kinds(c)
    block = (2 * n + 2 * b) * D + ((2 * D + q) * c.H * c.K + ((g + 1) * D + g * b) * F) // t
    block += 2 * (D + q) * c.K * kv_heads(c, t)
    table = Unit(own.V * D, ("embed",) * own.first + ("head",) * own.last)
    embed, head = c.T * D * (c.position == "learned"), n * D
    if not c.tied:
        embed, head = embed + table.elements, head + table.elements
    out = [table] * (c.tied and own.first)
    out += [Unit(embed, ("embed",))] * own.first
    out += [Unit(block, (f"block {i} of the stage",)) for i in range(own.blocks)]
    out += [table] * (c.tied and own.last and not own.first)
    out += [Unit(head, ("head",))] * own.last
    return _joined(out, table, layout.bucket_bytes // ITEMSIZE[train.dtype], c.tied)


def _joined(units: list[Unit], table: Unit, limit: int, tied: bool) -> list[Unit]:
    """Neighbours joined while they stay within ``limit`` elements, a shared table left alone."""
    out: list[Unit] = []
    for unit in units:
        alone = tied and table in (unit, *out[-1:])
        if out and not alone and out[-1].elements + unit.elements <= limit:
            last = out.pop()
            unit = Unit(last.elements + unit.elements, last.users + unit.users)
        out.append(unit)
    return out


def group(layout: Layout) -> int:
    """The number of ranks over which ZeRO cuts a unit."""
    return layout.shard_group if layout.shard_group and not layout.secondary else layout.dp


def shard(elements: int, n: int) -> int:
    """One of n equal parts, the last one filled up with zeros."""
    return -(-elements // n)


def all_reduce(N: int, n: int, rank: int) -> int:
    """Elements that one rank sends for a sum of N."""
    return N + (n - 2) * cut(N, n, rank) if n > 1 else 0
