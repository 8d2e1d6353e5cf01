"""ZeRO-3 gathers one layer at a time and lets it go: watched while it runs."""

import weakref
from itertools import product

from layout_cases import MODEL, TRAIN, batch
from mpitest import mpi

from tparallel.config import Layout, replace
from tparallel.train import Trainer
from tparallel.zero.store import Store


def gathered_at_once(trainer, model):
    """How many gathered vectors are alive, at most: (right after a gather begins, after a
    computation, at the end of the step)."""
    alive: list[weakref.ref] = []
    during, after = [], []
    room = trainer.store.room

    def watched(bucket):
        whole = room(bucket)
        alive.append(weakref.ref(whole))
        during.append(count())
        return whole

    def count():
        return sum(reference() is not None for reference in alive)

    trainer.store.room = watched
    trainer.forward_backward(*batch(model, TRAIN), after=lambda _: after.append(count()))
    assert len(during) == trainer.layout.microbatches * (2 * (2 + model.L) + 4 * model.tied)
    return max(during), max(after), count()


def kept_by(name):
    """A Store that keeps one layer's gathered parameters: the bug that makes ZeRO-3 useless."""
    kept = []

    class Keeps(Store):
        def gathered(self, layers):
            for layer, p in super().gathered(layers):
                if layer == name:
                    kept.append(p)
                yield layer, p
                del p

    return Keeps


@mpi(2)
def test_stage_3_holds_one_gathered_layer_and_none_between_computations(comm):
    """In forward and in backward, with several micro-batches in flight; one more while the next
    layer's travel ahead, and one more where a layer shares the tied table."""
    tied = replace(MODEL, tied=True)
    for M, overlap, model in product((1, 2), (False, True), (MODEL, tied)):
        layout = Layout(dp=2, zero=3, microbatches=M, overlap=overlap)
        trainer = Trainer(model, TRAIN, layout, comm)
        assert gathered_at_once(trainer, model) == (1 + overlap + model.tied, 0, 0), layout.name
        trainer.close()


@mpi(2)
def test_a_store_that_keeps_a_gathered_layer_is_found(comm):
    """The same count shows it: two are left at the end, from forward and from backward."""
    for layer in ("embed", "block.2", "head"):
        trainer = Trainer(MODEL, TRAIN, Layout(dp=2, zero=3, overlap=False), comm)
        trainer.store.__class__ = kept_by(layer)
        during, after, end = gathered_at_once(trainer, MODEL)
        assert during > 1 and after > 0 and end == 2
        trainer.close()


@mpi(2)
def test_below_stage_3_nothing_is_gathered_during_the_passes(comm):
    """The parameters are there."""
    for zero in (0, 1, 2):
        trainer = Trainer(MODEL, TRAIN, Layout(dp=2, zero=zero), comm)
        trainer.forward_backward(*batch(MODEL, TRAIN))
        assert not any(key.op == "all_gather" for key in trainer.mesh.ledger.totals)
        trainer.close()
