"""How shards become whole and gradients become sums: over all of dp, or in groups.

plain       cut over dp
hybrid      cut over a group (axis ``near``), copied across groups (axis ``far``): gathers stay
            within the group; gradients are summed in the group, then, once per step, across
secondary   cut over dp, and each group holds a second copy of the parameters, made when they are
            first gathered after an update: later gathers stay within the group.  Costs Ψ / group

Source: hybrid: Zhao et al. 2023 (FSDP), section 3.2.2; secondary: Wang et al. 2023 (ZeRO++ hpZ),
section 3.2
"""

from . import quantised


class Moves:
    """``shard``: the axis along which everything exists once; ``replicas``: along which it exists
    again, or None."""

    def __init__(self, mesh):
        self.mesh, self.layout = mesh, mesh.layout
        hybrid = bool(self.layout.shard_group) and not self.layout.secondary
        self.shard = mesh.near if hybrid else mesh.dp
        self.replicas = mesh.far if hybrid else None
        self.secondary: dict = {}  # bucket -> this rank's part of its group's copy

    def start_gather(self, bucket: str, shard, out):
        """A bucket's parameters, whole, into ``out``."""
        what, near = f"{bucket} params", self.mesh.near
        if bucket in self.secondary:
            return near.start_all_gather(self.secondary[bucket], what=what, out=out)
        if self.layout.quantise in ("weights", "both"):
            pending = quantised.start_all_gather(self.shard, shard, what=what, out=out)
        else:
            pending = self.shard.start_all_gather(shard, what=what, out=out)
        if not self.layout.secondary:
            return pending

        def keep(whole):
            self.secondary[bucket] = whole.reshape(near.size, -1)[near.rank].copy()
            return whole

        return quantised.Then(pending, keep)

    def start_reduce_scatter(self, local, what: str):
        """This rank's shard of the sum of everybody's ``local``."""
        if self.layout.quantise not in ("grads", "both"):
            return self.shard.start_reduce_scatter(local, what=what)
        hops = [self.mesh.near, self.mesh.far] if self.layout.secondary else [self.shard]
        return quantised.start_reduce_scatter(hops, local, what=what)

    def parameters_change(self) -> None:
        """The groups' copies are of the old ones."""
        self.secondary.clear()
