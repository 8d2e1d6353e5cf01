"""ZeRO: what each stage keeps and sends, to the byte; and that no stage changes a single bit."""

from itertools import combinations, product

import numpy as np
import pytest
from groups import groups
from layout_cases import (
    MODEL,
    TRAIN,
    assert_equal,
    batch,
    errors,
    parallel,
    same_bits,
    serial,
)
from mpitest import mpi

from tparallel.comm.cut import pieces
from tparallel.compare.equality import relative_error, worst_error
from tparallel.config import Layout, ModelConfig, replace
from tparallel.serial.parameters import decayed, shapes
from tparallel.train import Trainer
from tparallel.zero.partition import Partition

STAGES = (0, 1, 2, 3)
F8 = 8
BATCH24 = replace(TRAIN, global_batch=24, clip=0.25)  # 2, 3 and 4 ranks divide it, M = 4 too
TIED = replace(MODEL, tied=True)
# A tied head of two numbers: on four ranks two of them hold nothing but padding.
TINY = ModelConfig(L=1, D=1, H=1, T=2, V=5, F=3, tied=True)


def shard_sizes(model, n):
    """{unit: elements of a shard}: the layer's size over n, rounded up."""
    sizes = {u: sum(int(np.prod(s)) for s in p.values()) for u, p in shapes(model).items()}
    return {u: -(-size // n) for u, size in sizes.items()}


@pytest.mark.parametrize("n", range(1, 10))
def test_a_layers_vector_is_cut_into_equal_shards_that_cover_it(n):
    """Names lie end to end without a gap; the last shards may hold padding, which is zero."""
    for named in shapes(TIED).values():
        part = Partition(named, n)
        arrays = {name: np.random.default_rng(0).normal(size=s) for name, s in named.items()}
        flat = part.flatten(arrays, "float64")
        assert np.array_equal(np.concatenate([part.own(flat, r) for r in range(n)]), flat)
        assert len({len(part.own(flat, r)) for r in range(n)}) == 1
        assert part.size <= len(flat) < part.size + n and not flat[part.size :].any()
        for name, view in part.views(flat).items():
            assert np.array_equal(view, arrays[name]) and np.shares_memory(view, flat)


@pytest.mark.parametrize("n", range(1, 10))
def test_decay_falls_on_matrices_alone_wherever_the_shards_are_cut(n):
    """The spans of every shard, together, are each decayed name's entries exactly once."""
    for named in shapes(TIED).values():
        part = Partition(named, n)
        flags = {name: np.full(s, float(decayed(name))) for name, s in named.items()}
        want, found = part.flatten(flags, "float64"), np.zeros(part.padded)
        for rank in range(n):
            start = rank * part.shard
            for span in part.spans(start, start + part.shard, decayed):
                part.own(found, rank)[span] += 1
        assert np.array_equal(found, want)


@mpi(3)
def test_each_rank_keeps_the_tables_bytes_and_no_more(comm):
    """Parameters, gradients and moments per stage, padding included, in arrays of their own: a
    shard that is a view would keep the whole vector alive.  Padding stays zero: what is there
    might be no number, and is summed, updated and hashed with the rest."""
    for group in groups(comm, 2, 3):
        n = group.size
        for zero in STAGES:
            trainer = Trainer(MODEL, BATCH24, Layout(dp=n, zero=zero), group)
            store, shard = trainer.store, shard_sizes(MODEL, n)
            kept = {
                "params": (store.params, 1 if zero >= 3 else n),
                "grads": (store.grads, 1 if zero >= 2 else n),
                "m": (store.moments[0], 1 if zero >= 1 else n),
                "v": (store.moments[1], 1 if zero >= 1 else n),
            }
            trainer.step(0, *batch(MODEL, BATCH24))
            for kind, (vectors, shards) in kept.items():
                got = {u: a.nbytes for u, a in vectors.items()}
                assert got == {u: s * shards * F8 for u, s in shard.items()}, (kind, zero, n)
                assert all(a.base is None for a in vectors.values()), (kind, zero)
                for unit, part in store.partitions.items():
                    start = 0 if len(vectors[unit]) == part.padded else group.rank * part.shard
                    assert not vectors[unit][max(part.size - start, 0) :].any(), (kind, zero)
            trainer.close()


@mpi(3)
def test_each_step_sends_the_tables_multiple_of_psi(comm):
    """Per rank (n−1)/n Ψ times 2, 2, M + 1, 3 M, to the byte; stage 3 gathers a tied table for
    each of its two uses."""
    for group in groups(comm, 2, 3):
        for model, M, zero in product((MODEL, TIED), (1, 4), STAGES):
            n, layout = group.size, Layout(dp=group.size, zero=zero, microbatches=M)
            factor = {0: 2, 1: 2, 2: M + 1, 3: 3 * M}[zero]
            trainer = Trainer(model, BATCH24, layout, group)
            trainer.step(0, *batch(model, BATCH24))
            want = sum(
                (n - 1) * size * F8 * (factor + 2 * M * (zero == 3 and unit == "vocab"))
                for unit, size in shard_sizes(model, n).items()
            )
            piece = pieces(2, n)[group.rank]  # of the two numbers of the loss and the norm
            want += (2 - piece + (n - 1) * piece) * F8
            assert trainer.mesh.ledger.wire("dp") == want, (n, model.tied, M, zero)
            trainer.close()


@mpi(4)
def test_with_one_micro_batch_every_stage_trains_to_the_same_bits(comm):
    """Three AdamW steps, clipping active: losses, norms, gradients, parameters and moments."""
    for group in groups(comm, 2, 3, 4):
        runs = [parallel(MODEL, BATCH24, Layout(dp=group.size, zero=z), group) for z in STAGES]
        if runs[0] is not None:
            assert min(runs[0].norms) > BATCH24.clip
            assert_all_alike(runs)


@mpi(3)
def test_with_four_micro_batches_the_stages_agree_in_pairs_and_beyond_to_rounding(comm):
    """0 and 1 add micro-batches before ranks, 2 and 3 ranks before micro-batches."""
    for group in groups(comm, 2, 3):
        runs = [
            parallel(MODEL, BATCH24, Layout(dp=group.size, zero=z, microbatches=4), group)
            for z in STAGES
        ]
        if runs[0] is not None:
            assert_all_alike(runs[:2])
            assert_all_alike(runs[2:])
            assert worst_error(runs[0].grads, runs[2].grads)[0] <= 1e-12
            for a, b in zip(runs[0].moments, runs[2].moments):
                assert worst_error(a, b)[0] <= 1e-12
            assert worst_error(runs[0].params, runs[2].params)[0] <= 1e-10


def assert_all_alike(runs):
    for a, b in combinations(runs, 2):
        assert (a.losses, a.norms, a.held_out) == (b.losses, b.norms, b.held_out)
        assert same_bits(a.grads, b.grads) and same_bits(a.params, b.params)
        assert all(same_bits(x, y) for x, y in zip(a.moments, b.moments))


@mpi(4)
def test_vectors_that_do_not_divide_and_layers_smaller_than_the_group_are_trained_right(comm):
    """Ranks that hold nothing but padding take part in every message, and change nothing."""
    for zero in STAGES:
        for model in (TINY, MODEL):
            e = errors(model, TRAIN, Layout(dp=4, zero=zero), comm)
            assert_equal(e, "adamw", f"{model} zero={zero}")


@mpi(4)
def test_the_norm_before_clipping_counts_every_number_once(comm):
    """What tp ranks hold alike and a table at both ends of the pipeline is counted on one of
    them: exactly serial's norm, which is far above the clip."""
    texts = ["tp=4", "pp=4", "dp=4", "tp=2,pp=2", "pp=2,dp=2,zero=2", "tp=2,dp=2,zero=3"]
    for model in (MODEL, TIED):
        true = serial(model, TRAIN, 1)
        for text in texts:
            trainer = Trainer(model, TRAIN, Layout.parse(text), comm)
            _, norm = trainer.step(0, *batch(model, TRAIN))
            assert true.norms[0] > 2 * TRAIN.clip
            assert relative_error(norm, true.norms[0]) <= 1e-12, (text, model.tied)
            trainer.close()
