"""Parameters, gradients and optimizer state of this rank's layers, by ZeRO stage.

What is sharded over dp follows one table; every branch below is ``sharded(kind)``, and stage 0 is
plain data parallelism.  The unit is a bucket of layers, by default one: a flat vector, a message.

Communicates over dp, per step with M micro-batches, in units of Ψ elements × (n−1)/n:
    stage 0  all_reduce of gradients                                     2
    stage 1  reduce_scatter of gradients, all_gather of parameters       2
    stage 2  reduce_scatter per micro-batch, all_gather of parameters    M + 1
    stage 3  all_gather in forward and in backward, reduce_scatter, per micro-batch   3 M
A bucket's gradients leave as soon as its last layer's backward is done, and the parameters of
the next layer travel while this one computes (``Layout.overlap``).
Source: Rajbhandari et al. 2020, sections 5 and 7; overlap: Zhao et al. 2023, section 3.3
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..backend import xp
from ..config import TrainConfig
from ..serial.adamw import clip_factor
from ..serial.parameters import stored_in
from .flight import InFlight
from .moves import Moves
from .norm import totals
from .offload import placement
from .optimizer import Optimizer
from .partition import Partition, buckets
from .precision import LossScale, add_into, storage_dtype, write_into

SHARDED_FROM = {"optimizer": 1, "grads": 2, "params": 3}  # the ZeRO stage that first shards it


class Store:
    """``units``: (layer, {name: this tp rank's part of the parameter}), the start of training,
    taken one by one: under stage 3 no rank ever holds the whole model."""

    def __init__(
        self,
        units: Iterable[tuple[str, dict]],
        zero: int,
        mesh,
        train: TrainConfig,
        tied: bool,
        counts_here: Callable[[tuple[str, str]], bool],  # of (layer, name), among tp ranks
        learns: bool = True,  # else parameters are all there is
    ):
        self.zero, self.mesh, self.train, self.tied = zero, mesh, train, tied
        self.counts_here, self.learns, layout = counts_here, learns, mesh.layout
        self.moves = Moves(mesh)
        self.shard, self.replicas = self.moves.shard, self.moves.replicas
        self.dtype = storage_dtype(train.dtype)
        self.compute_dtype = storage_dtype(train.compute_dtype)
        self.loss_scale = LossScale(train)
        self.optimizer = Optimizer(train, placement(layout.offload))
        self.partitions: dict[str, Partition] = {}
        self.bucket_of: dict[str, str] = {}  # layer -> the bucket that it is stored in
        self.params: dict = {}
        self.grads: dict = {}
        for joined in buckets(units, layout.bucket_bytes // self.dtype.itemsize):
            self._add_bucket(joined)
        layers = [unit for unit in self.bucket_of if unit != "vocab"]
        self.users = {b: [u for u in layers if b in self._buckets(u)] for b in self.partitions}
        self.overlap = layout.overlap
        self.in_flight = InFlight(1 if layout.overlap else 0)
        often = self.sharded("grads") and layout.reduce_each == "microbatch"
        self.wait_for = 1 if often else layout.microbatches  # additions before a sum over dp
        self.added: Counter = Counter()  # (bucket, layer) -> additions since that sum
        self.local: dict = {}  # bucket -> this rank's gradients that are not yet summed over dp
        self.written: dict = {}  # bucket -> names whose gradient is there already
        self.summed: set = set()  # buckets that hold a sum of this step

    def _add_bucket(self, joined: dict[str, dict]) -> None:
        """Keep this rank's part of some layers, and begin their gradients and optimizer state."""
        b = next(iter(joined)) + (f"..{[*joined][-1]}" if len(joined) > 1 else "")
        arrays = {(unit, name): a for unit, p in joined.items() for name, a in p.items()}
        part = Partition({key: a.shape for key, a in arrays.items()}, self.shard.size)
        self.partitions[b] = part
        self.bucket_of |= dict.fromkeys(joined, b)
        flat = part.flatten(arrays, self.train.master_dtype)
        if self.learns:
            self.optimizer.add(b, self._kept("optimizer", b, flat))
        flat = flat.astype(self.dtype, copy=False)
        self.params[b] = self._kept("params", b, flat)
        if self.learns:
            self.grads[b] = xp.zeros(len(self._kept("grads", b, flat)), self.dtype)

    def sharded(self, kind: str) -> bool:
        return self.zero >= SHARDED_FROM[kind]

    def _kept(self, kind: str, bucket: str, flat):
        """What this rank keeps of a vector: its shard, or all of it."""
        return (
            self.partitions[bucket].own(flat, self.shard.rank).copy()
            if self.sharded(kind)
            else flat
        )

    def _updated(self, flat, kind: str, bucket: str):
        """The part of a kept vector that this rank updates: its shard from stage 1 on."""
        if self.sharded("optimizer") and not self.sharded(kind):
            return self.partitions[bucket].own(flat, self.shard.rank)
        return flat

    def _buckets(self, layer: str) -> list[str]:
        return list(dict.fromkeys(self.bucket_of[unit] for unit in stored_in(layer, self.tied)))

    def gathered(self, layers: list[str]) -> Iterator[tuple[str, dict]]:
        """Each layer with its whole parameters, in this order.  Under stage 3 they live until the
        next is asked for (let go of them before), and the next one's travel meanwhile."""
        if not self.sharded("params"):
            yield from ((layer, self._views(layer, self.params)) for layer in layers)
            return
        here: dict = {}
        coming: dict = {}
        for layer, following in zip(layers, [*layers[1:], None]):
            here = {b: flat for b, flat in here.items() if b in self._buckets(layer)}
            for b in self._buckets(layer):
                if b not in here:
                    here[b] = (coming.pop(b, None) or self._start_gather(b)).wait()
            if self.overlap and following:
                wanted = [b for b in self._buckets(following) if b not in here]
                coming = {b: self._start_gather(b) for b in wanted}
            yield layer, self._views(layer, here)

    def gather(self, layer: str) -> dict:
        """One layer's whole parameters."""
        return next(self.gathered([layer]))[1]

    def _start_gather(self, bucket: str):
        return self.moves.start_gather(bucket, self.params[bucket], out=self.room(bucket))

    def room(self, bucket: str):
        """Where a whole bucket is put together, for as long as it is used."""
        return xp.empty(self.partitions[bucket].padded, self.dtype)

    def _views(self, layer: str, vectors: dict) -> dict:
        """The layer's arrays in the dtype that it computes with."""
        stored = stored_in(layer, self.tied)
        return {
            name: a.astype(self.compute_dtype, copy=False)
            for b in self._buckets(layer)
            for (unit, name), a in self.partitions[b].views(vectors[b]).items()
            if unit in stored
        }

    def empty_places(self, layer: str) -> Iterator:
        """Where the gradients of a layer will be, of which nothing has come yet (places.py)."""
        return (view for written, key, view in self._sums(layer) if key not in written)

    def _sums(self, layer: str) -> Iterator[tuple[set, tuple[str, str], Any]]:
        """(names written, (unit, name), what is added to) of each gradient of a layer."""
        for b in self._buckets(layer):
            if b not in self.local:
                self.local[b], self.written[b] = self._room_for_sum(b), set()
            for key, view in self.partitions[b].views(self.local[b]).items():
                if key[0] in stored_in(layer, self.tied):
                    yield self.written[b], key, view

    def add_grads(self, layer: str, grads: dict) -> None:
        """Add one micro-batch's gradients of a layer; the last layer of a bucket sends them off."""
        for written, key, view in self._sums(layer):
            (write_into if key not in written else add_into)(view, grads[key[1]])
            written.add(key)
        for b in self._buckets(layer):
            self.added[b, layer] += 1
            if all(self.added[b, user] >= self.wait_for for user in self.users[b]):
                self._start_sum(b)

    def _room_for_sum(self, bucket: str):
        """Room for a whole bucket: kept, or made for as long as it takes to sum over dp."""
        if not self.sharded("grads"):
            return self.grads[bucket]
        part = self.partitions[bucket]
        room = xp.empty(part.padded, self.dtype)
        room[part.size :] = 0
        return room

    def _start_sum(self, bucket: str) -> None:
        """Sum over dp what was added since the last sum."""
        local, what = self.local.pop(bucket), f"{bucket} grads"
        for user in self.users[bucket]:  # one may be ahead of another: both ends of a V schedule
            self.added[bucket, user] -= self.wait_for
        if self.sharded("optimizer"):
            pending = self.moves.start_reduce_scatter(local, what=what)
            self.in_flight.add(pending, lambda mine: self._take(bucket, mine))
        elif self.shard.size > 1:
            self.in_flight.add(self.shard.start_all_reduce(local, what=what, out=local))

    def _take(self, bucket: str, mine) -> None:
        """A reduce_scatter is over: its result is this rank's shard."""
        shard = self._updated(self.grads[bucket], "grads", bucket)
        if bucket in self.summed:
            add_into(shard, mine)
        else:
            shard[...] = mine
        self.summed.add(bucket)

    def reduce(self) -> None:
        """The step's gradients are complete when this returns: summed over dp, across shard
        groups, and, where the first and the last stage share a table, over these two."""
        for bucket in list(self.local):
            self._start_sum(bucket)
        self.in_flight.land()
        self.summed.clear()
        self.added.clear()
        for b, g in self.grads.items():
            shared = self.mesh.ends if b == "vocab" and self.mesh.ends.size > 1 else None
            for axis in filter(None, (self.replicas, shared)):
                part = self._updated(g, "grads", b)
                axis.all_reduce(part, what=f"{b} grads", out=part)

    def totals(self, loss: float) -> tuple[float, float]:
        """Loss and gradient norm of the whole job, from every rank's share of both."""
        return totals(self, loss)

    def update(self, step: int, norm: float) -> None:
        """One optimizer step on what this rank updates; then everybody gets the new parameters."""
        if not self.loss_scale.accepts(norm):
            return
        self.moves.parameters_change()
        scale = clip_factor(norm, self.train) / self.loss_scale.scale
        for b, part in self.partitions.items():
            w = self._updated(self.params[b], "params", b)
            g = self._updated(self.grads[b], "grads", b)
            start = self.shard.rank * part.shard if self.sharded("optimizer") else 0
            self.optimizer.update(b, part, start, w, g, scale, step)
            if self.sharded("optimizer") and not self.sharded("params"):
                what, whole = f"{b} params", self.params[b]
                self.in_flight.add(self.shard.start_all_gather(w.copy(), what=what, out=whole))
        self.in_flight.land()

    def counted(self, key: tuple[str, str]) -> bool:
        """Of the ranks that hold the same shard of (layer, name), copies over tp, across shard
        groups and at both ends of the pipeline, is this the first?"""
        at_an_end = key[0] == "vocab" and self.mesh.ends.rank > 0
        again = self.replicas and self.replicas.rank > 0
        return not (at_an_end or again) and self.counts_here(key)

    def state(self) -> dict[str, dict]:
        """What training goes on from, as kept here: {"params" | "m" | "v": {bucket: vector}}.
        In half precision the params are the float32 master weights: the halves follow from them."""
        state = dict(self.optimizer.state)
        return {"params": state.pop("master", self.params), **state}

    @property
    def moments(self) -> tuple[dict, ...]:
        """Adam's m and v, as kept here: {bucket: vector}."""
        return tuple(
            self.optimizer.state[kind] for kind in ("m", "v") if kind in self.optimizer.state
        )

    def whole(self, kind: str, vectors: dict) -> dict:
        """{layer: {name: array}} of this stage and tp rank, gathered over dp (not counted)."""
        out: dict = {}
        with self.mesh.ledger.closed():
            for b, part in self.partitions.items():
                flat = vectors[b]
                if len(flat) < part.padded or (kind == "grads" and self.sharded("optimizer")):
                    mine = (
                        flat if len(flat) < part.padded else part.own(flat, self.shard.rank).copy()
                    )
                    flat = self.shard.all_gather(xp.asarray(mine), what=f"{b} {kind} to look at")
                for (unit, name), a in part.views(flat).items():
                    out.setdefault(unit, {})[name] = a.copy()
        return out
