"""ZeRO-3 gathers one layer at a time and lets it go: watched while it runs."""

import weakref

from layout_cases import MODEL, TRAIN, batch
from mpitest import mpi

from tparallel.config import Layout, replace
from tparallel.train import Trainer
from tparallel.zero.store import Store


def gathered_at_once(trainer, model):
    """How many gathered vectors are alive, at most: (right after a gather, after a computation,
    at the end of the step)."""
    alive: list[weakref.ref] = []
    during, after = [], []
    all_gather = trainer.store.dp.all_gather

    def watched(x, *, what, out=None):
        whole = all_gather(x, what=what, out=out)
        alive.append(weakref.ref(whole))
        during.append(count())
        return whole

    def count():
        return sum(reference() is not None for reference in alive)

    trainer.store.dp.all_gather = watched
    trainer.forward_backward(*batch(model, TRAIN), after=lambda _: after.append(count()))
    assert len(during) == 2 * (2 + model.L) * trainer.layout.microbatches + 4 * model.tied
    return max(during), max(after), count()


def kept_by(name):
    """A Store that keeps one layer's gathered parameters: the bug that makes ZeRO-3 useless."""
    kept = []

    class Keeps(Store):
        def gather(self, layer):
            p = super().gather(layer)
            if layer == name:
                kept.append(p)
            return p

    return Keeps


@mpi(2)
def test_stage_3_holds_one_gathered_layer_and_none_between_computations(comm):
    """In forward and in backward, with several micro-batches in flight; with a tied table the
    ends hold it beside their own vector."""
    for layout in (Layout(dp=2, zero=3, microbatches=2), Layout(dp=2, zero=3)):
        trainer = Trainer(MODEL, TRAIN, layout, comm)
        assert gathered_at_once(trainer, MODEL) == (1, 0, 0)
        trainer.close()
    tied = replace(MODEL, tied=True)
    trainer = Trainer(tied, TRAIN, Layout(dp=2, zero=3), comm)
    assert gathered_at_once(trainer, tied) == (2, 0, 0)
    trainer.close()


@mpi(2)
def test_a_store_that_keeps_a_gathered_layer_is_found(comm):
    """The same count, and it is not (1, 0, 0)."""
    for layer in ("embed", "block.2", "head"):
        trainer = Trainer(MODEL, TRAIN, Layout(dp=2, zero=3), comm)
        trainer.store.__class__ = kept_by(layer)
        during, after, end = gathered_at_once(trainer, MODEL)
        assert during > 1 and after > 0 and end == 2  # once from forward, once from backward
        trainer.close()


@mpi(2)
def test_below_stage_3_nothing_is_gathered_during_the_passes(comm):
    """The parameters are there."""
    for zero in (0, 1, 2):
        trainer = Trainer(MODEL, TRAIN, Layout(dp=2, zero=zero), comm)
        trainer.forward_backward(*batch(MODEL, TRAIN))
        assert not any(key.op == "all_gather" for key in trainer.mesh.ledger.totals)
        trainer.close()
