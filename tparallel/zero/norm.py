"""The gradient norm of the whole job, from what each rank holds: every number counted once.

Each rank adds up its shard, under every stage, so that every stage adds alike to the last bit.
What several ranks hold (copies over tp, across shard groups, or at both ends of the pipeline) is
counted on the first of them.

Source: Pascanu, Mikolov, Bengio 2013, algorithm 1 (the norm is that of all parameters together)
"""

from math import sqrt

import numpy as np

from ..backend import to_host, xp

PIECE = 1 << 20  # numbers whose squares are added in their own type: of 2²⁷ it would lose 10⁻³


def totals(store, loss: float) -> tuple[float, float]:
    """Loss and gradient norm, the same on every rank, from every rank's share of both.

    Communicates:  one message of two numbers per axis
    """
    mesh = store.mesh
    share = loss if mesh.tp.rank == 0 else 0.0
    both = xp.empty(2, np.float64)
    both[0], both[1] = share, square_sum(store)
    for axis in (mesh.tp, mesh.pp, mesh.dp):
        both = axis.all_reduce(both, what="loss and norm")
    both = to_host(both)
    return float(both[0]), sqrt(both[1])


def square_sum(store):
    """This rank's share of Σ g², where the gradients are: nobody has waited for it."""
    total = 0.0
    for bucket, part in store.partitions.items():
        g = store.grads[bucket]
        g = g if store.sharded("grads") else part.own(g, store.shard.rank)
        start = store.shard.rank * part.shard
        for span in part.spans(start, start + part.shard, store.counted):
            for at in range(span.start, span.stop, PIECE):
                piece = g[at : min(at + PIECE, span.stop)]
                wide = piece.astype(store.train.master_dtype, copy=False)
                total = total + xp.vdot(wide, wide).astype(np.float64)
    return total / store.loss_scale.scale**2
