"""A checkpoint that one layout has saved is what any other goes on from."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from checkpoint_cases import TEXT, train, whole
from layout_cases import MODEL, TRAIN, same_bits
from mpitest import mpi
from standin_cupy import CUPY

from tparallel.checkpoint import Saver, load, newest, opened
from tparallel.checkpoint.folder import path_of
from tparallel.compare.equality import worst_error
from tparallel.config import Layout, replace
from tparallel.train import Trainer

HALFWAY, END = 2, 4
LAYOUTS = [
    Layout(microbatches=2),
    Layout(dp=4, zero=3),
    Layout(tp=2, offload=True),
    Layout(pp=4, microbatches=4),
    Layout(dp=2, microbatches=2),
    Layout(tp=4),
    Layout(dp=4, zero=2, bucket_bytes=9000),
    Layout(tp=2, pp=2, schedule="gpipe", microbatches=2, sp="keep"),
    Layout(dp=2, zero=1, offload=True),
    Layout(tp=2, dp=2, zero=3),
    Layout(pp=2, dp=2, zero=1, schedule="zb-v", microbatches=2),
    Layout(dp=4, zero=3, shard_group=2),
    Layout(dp=4, zero=3, shard_group=2, secondary=True),
]

MODELS = {"adamw": replace(MODEL, Hkv=2), "sgd": replace(MODEL, tied=True)}
BOUNDS = {"adamw": 1e-10, "sgd": 1e-12}


class Ranks:
    """As many ranks as a layout needs, of four; the others do nothing meanwhile."""

    def __init__(self, comm):
        self.comms = {n: comm.Split(0 if comm.rank < n else 1) for n in (1, 2, 4)}
        self.rank = comm.rank

    def of(self, layout: Layout):
        return self.comms[layout.ranks] if self.rank < layout.ranks else None


def saved_by(which: set, ranks: Ranks, config, folder: Path, model) -> dict[int, list[dict]]:
    """Each layout trains, saves halfway, and goes on to the end: where it then is."""
    ends: dict[int, list[dict]] = {i: [] for i in sorted(which)}
    for i in ends:
        if comm := ranks.of(LAYOUTS[i]):
            trainer = Trainer(model, config, LAYOUTS[i], comm)
            train(trainer, 0, HALFWAY)
            Saver(trainer, folder / str(i), TEXT).save(HALFWAY)
            train(trainer, HALFWAY, END)
            ends[i] = whole(trainer)
            trainer.close()
    return ends


def check_pairs(comm, folder: Path, optimizer: str, pairs: list, tied=None) -> None:
    """Saved by the first of a pair, resumed by the second: where the first went uninterrupted."""
    model = MODELS[optimizer] if tied is None else replace(MODEL, tied=tied)
    config = replace(TRAIN, optimizer=optimizer, dropout=0.1, steps=END)
    ranks = Ranks(comm)
    ends = saved_by({old for old, _ in pairs}, ranks, config, folder, model)
    for old, new in pairs:
        comm.Barrier()  # those that a layout of few ranks leaves idle do not run ahead
        if part := ranks.of(LAYOUTS[new]):
            found, refused = newest(folder / str(old), part)
            assert found and found.step == HALFWAY and not refused
            trainer = Trainer(model, config, LAYOUTS[new], part)
            load(trainer, found)
            train(trainer, HALFWAY, END)
            assert_arrived(ends[old], whole(trainer), LAYOUTS[old], LAYOUTS[new], optimizer)
            trainer.close()


def assert_arrived(there: list, here: list, old: Layout, new: Layout, optimizer: str) -> None:
    for a, b in zip(there, here, strict=True):
        if old == new:
            assert same_bits(a, b), f"{old.name}: not the bits of the uninterrupted run"
        error, name = worst_error(b, a)
        assert error <= BOUNDS[optimizer], f"{old.name} -> {new.name}: {name}: {error:.1e}"


N = len(LAYOUTS)
SOME = {
    "adamw": [(i, (i + k) % N) for i in range(N) for k in (0, 4)],
    "sgd": [(i, (i + 7) % N) for i in range(0, N, 2)],
}


@mpi(4, timeout=90)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_any_layout_goes_on_from_the_checkpoint_of_any_other(comm, tmp_path, optimizer):
    """33 pairs of 13 layouts on 1, 2 and 4 ranks: two steps, a checkpoint, two steps; resumed by
    the same layout bitwise equal to the uninterrupted run, by another within 1e-10 under AdamW and
    1e-12 under SGD, in float64, with dropout, clipping, grouped heads or tied tables."""
    check_pairs(comm, tmp_path, optimizer, SOME[optimizer])


@pytest.mark.slow
@mpi(4, timeout=600)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("tied", [False, True])
def test_all_pairs_of_layouts(comm, tmp_path, optimizer, tied):
    """13 × 13 pairs."""
    check_pairs(comm, tmp_path, optimizer, list(product(range(N), repeat=2)), tied)


@mpi(2, timeout=60)
def test_half_precision_goes_on_bitwise(comm, tmp_path):
    """Master weights, halves, moments and the state of the loss scale, which is so high that a
    step is skipped, and which doubles after three good ones, two before the checkpoint: the same
    bits under every ZeRO stage, in the same and (ZeRO only moves numbers) in the next one."""
    for dtype in ("float16", "bfloat16", "float32"):
        zero_stages_go_on(comm, tmp_path / dtype, dtype)


def zero_stages_go_on(comm, folder: Path, dtype: str) -> None:
    config = replace(TRAIN, dtype=dtype, loss_scale=2.0**19, scale_window=3, steps=6)
    layouts = [Layout(dp=2, zero=zero, offload=zero > 1) for zero in range(4)]
    for i, layout in enumerate(layouts):
        trainer = Trainer(MODEL, config, layout, comm)
        train(trainer, 0, 3)  # float16: the first is skipped, the scale halved
        Saver(trainer, folder / str(i), TEXT).save(3)
        train(trainer, 3, 6)
        for other in (layout, layouts[(i + 1) % 4]):
            resumed = Trainer(MODEL, config, other, comm)
            load(resumed, opened(path_of(folder / str(i), 3), comm))
            train(resumed, 3, 6)
            for a, b in zip(whole(trainer), whole(resumed), strict=True):
                assert same_bits(a, b)
            assert trainer.store.loss_scale.state() == resumed.store.loss_scale.state()
            if other is layout:
                assert_same_state(trainer, resumed)
            resumed.close()
        if dtype == "float16":
            state = {"scale": 2.0**19, "good": 2, "skipped": 1}
            assert trainer.store.loss_scale.state() == state
        trainer.close()


def assert_same_state(a: Trainer, b: Trainer) -> None:
    """Every vector, the padding at its end too."""
    for kind, vectors in a.store.state().items():
        for bucket, vector in vectors.items():
            assert np.array_equal(vector, b.store.state()[kind][bucket]), (kind, bucket)
            assert np.array_equal(a.store.params[bucket], b.store.params[bucket])


@mpi(2, env=CUPY)
def test_arrays_on_a_gpu_go_through_the_host(comm, tmp_path):
    """On a strict stand-in for CuPy, moments beside the parameters and in pinned memory: the bits
    of the uninterrupted run, in each from both; saved at once and in the background."""
    layouts = [
        Layout(dp=2, zero=zero, offload=offload) for zero, offload in ((1, True), (3, False))
    ]
    config = replace(TRAIN, dtype="float16", steps=4, loss_scale=1024.0)
    for i, layout in enumerate(layouts):
        one = Trainer(MODEL, config, layout, comm)
        train(one, 0, 2)
        saver = Saver(one, tmp_path / str(i), TEXT, background=bool(i))
        saver.save(2)
        train(one, 2, 4)
        saver.finish()
        for other in layouts:
            two = Trainer(MODEL, config, other, comm)
            load(two, opened(path_of(tmp_path / str(i), 2), comm))
            train(two, 2, 4)
            assert all(map(same_bits, whole(one), whole(two)))
            two.close()
        one.close()
