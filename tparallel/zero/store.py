"""Parameters, gradients and optimizer state of this rank's layers, by ZeRO stage.

What is sharded over dp follows one table; every branch below is ``sharded(kind)``, and stage 0 is
plain data parallelism.  The unit is a layer: one flat vector, one message.

Communicates over dp, per step with M micro-batches, in units of Ψ elements × (n−1)/n:
    stage 0  all_reduce of gradients                                     2
    stage 1  reduce_scatter of gradients, all_gather of parameters       2
    stage 2  reduce_scatter per micro-batch, all_gather of parameters    M + 1
    stage 3  all_gather in forward and in backward, reduce_scatter, per micro-batch   3 M
Source: Rajbhandari et al. 2020, sections 5 and 7
"""

from math import sqrt

import numpy as np

from ..backend import xp
from ..config import TrainConfig
from ..serial.adamw import adamw_update, clip_factor, learning_rate, sgd_update
from ..serial.parameters import decayed, stored_in
from ..tensor_parallel.split import is_split
from .partition import Partition

SHARDED_FROM = {"optimizer": 1, "grads": 2, "params": 3}  # the ZeRO stage that first shards it


class Store:
    """``units``: {layer: {name: this tp rank's part of the parameter}}, the start of training."""

    def __init__(self, units: dict, zero: int, mesh, train: TrainConfig, tied: bool):
        self.zero, self.mesh, self.train, self.tied = zero, mesh, train, tied
        self.dp = mesh.dp
        self.partitions = {
            u: Partition({n: a.shape for n, a in p.items()}, self.dp.size) for u, p in units.items()
        }
        flat = {u: self.partitions[u].flatten(p, train.dtype) for u, p in units.items()}
        self.params = {u: self._kept("params", u, v) for u, v in flat.items()}
        self.grads = {u: xp.zeros_like(self._kept("grads", u, v)) for u, v in flat.items()}
        self.moments: tuple[dict, ...] = ()
        if train.optimizer == "adamw":
            self.moments = tuple(
                {u: xp.zeros_like(self._kept("optimizer", u, v)) for u, v in flat.items()}
                for _ in ("m", "v")
            )

    def sharded(self, kind: str) -> bool:
        return self.zero >= SHARDED_FROM[kind]

    def _kept(self, kind: str, unit: str, flat):
        """What this rank keeps of a vector: its shard, or all of it."""
        return self.partitions[unit].own(flat, self.dp.rank).copy() if self.sharded(kind) else flat

    def gather(self, layer: str) -> dict:
        """The layer's whole parameters; under stage 3 they live while the caller holds them."""
        p = {}
        for unit in stored_in(layer, self.tied):
            flat = self.params[unit]
            if self.sharded("params"):
                flat = self.dp.all_gather(flat, what=f"{unit} params")
            p |= self.partitions[unit].views(flat)
        return p

    def add_grads(self, layer: str, grads: dict) -> None:
        """Add one micro-batch's gradients of a layer."""
        for unit in stored_in(layer, self.tied):
            if self.sharded("grads"):
                flat = self.partitions[unit].flatten(grads, self.train.dtype)
                self.grads[unit] += self.dp.reduce_scatter(flat, what=f"{unit} grads")
            else:
                for name, view in self.partitions[unit].views(self.grads[unit]).items():
                    view += grads[name]

    def reduce(self) -> None:
        """Finish the gradients: sum over dp what is not summed yet; then, if the first and the
        last stage share a table, sum their two gradients."""
        for unit, g in self.grads.items():
            if self.dp.size > 1 and not self.sharded("optimizer"):
                self.dp.all_reduce(g, what=f"{unit} grads", out=g)
            elif self.sharded("optimizer") and not self.sharded("grads"):
                mine = self.dp.reduce_scatter(g, what=f"{unit} grads")
                self.partitions[unit].own(g, self.dp.rank)[...] = mine
            if unit == "vocab" and self.mesh.pp.size > 1:
                part = self._updated(g, "grads", unit)
                part[...] = self.mesh.ends.all_reduce(part, what="vocab grads")

    def _updated(self, flat, kind: str, unit: str):
        """The part of a vector that this rank updates: its shard from stage 1 on."""
        if self.sharded("optimizer") and not self.sharded(kind):
            return self.partitions[unit].own(flat, self.dp.rank)
        return flat

    def square_sum(self) -> float:
        """This rank's share of Σ g²: its shard under every stage, so that every stage adds alike;
        what several ranks hold (tp replicas, a shared table) is counted on one of them."""
        total = 0.0
        for unit, part in self.partitions.items():
            if unit == "vocab" and self.mesh.pp.rank > 0:
                continue
            g = self.grads[unit]
            g = g if self.sharded("grads") else part.own(g, self.dp.rank)
            start = self.dp.rank * part.shard
            for span in part.spans(
                start, start + part.shard, lambda name: is_split(name) or self.mesh.tp.rank == 0
            ):
                total += float(xp.vdot(g[span], g[span]))
        return total

    def totals(self, loss: float) -> tuple[float, float]:
        """Loss and gradient norm of the whole job, from every rank's share: one small message
        per axis."""
        share = loss if self.mesh.tp.rank == 0 else 0.0
        both = xp.asarray(np.array([share, self.square_sum()]))
        for axis in (self.mesh.tp, self.mesh.pp, self.dp):
            both = axis.all_reduce(both, what="loss and norm")
        return float(both[0]), sqrt(float(both[1]))

    def update(self, step: int, norm: float) -> None:
        """One optimizer step on what this rank updates; then everybody gets the new parameters."""
        c = self.train
        scale, lr = clip_factor(norm, c), learning_rate(step, c)
        for unit, part in self.partitions.items():
            w = self._updated(self.params[unit], "params", unit)
            g = self._updated(self.grads[unit], "grads", unit)
            g *= scale
            start = self.dp.rank * part.shard if self.sharded("optimizer") else 0
            for decays in (True, False):
                decay = c.weight_decay if decays else 0.0
                for s in part.spans(start, start + len(w), lambda n, d=decays: decayed(n) == d):
                    if c.optimizer == "sgd":
                        sgd_update(w[s], g[s], lr, decay)
                    else:
                        m, v = self.moments
                        adamw_update(w[s], g[s], m[unit][s], v[unit][s], step, lr, decay, c)
            if self.sharded("optimizer") and not self.sharded("params"):
                self.dp.all_gather(w.copy(), what=f"{unit} params", out=self.params[unit])
            self.grads[unit][...] = 0

    def whole(self, kind: str, vectors: dict) -> dict:
        """{layer: {name: array}} of this stage and tp rank, gathered over dp (not counted)."""
        out = {}
        with self.mesh.ledger.closed():
            for unit, part in self.partitions.items():
                flat = vectors[unit]
                if len(flat) < part.padded or (kind == "grads" and self.sharded("optimizer")):
                    mine = flat if len(flat) < part.padded else part.own(flat, self.dp.rank).copy()
                    flat = self.dp.all_gather(mine, what=f"{unit} {kind} to look at")
                out[unit] = {name: a.copy() for name, a in part.views(flat).items()}
        return out
