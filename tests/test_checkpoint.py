"""A checkpoint that one layout has saved is what any other goes on from."""

import os
import threading
from itertools import product
from math import prod
from pathlib import Path

import numpy as np
import pytest
from layout_cases import MODEL, TRAIN, batch, same_bits
from mpitest import mpi
from safetensors.numpy import load_file
from standin_cupy import CUPY

from tparallel.checkpoint import Saver, load, newest, opened
from tparallel.checkpoint.box import boxes, moved, overlap, shape_of
from tparallel.checkpoint.folder import Checkpoint, path_of, steps
from tparallel.checkpoint.load import Reader
from tparallel.compare.equality import worst_error
from tparallel.config import Layout, replace
from tparallel.serial.parameters import shapes
from tparallel.train import Trainer
from tparallel.where import names, where

TEXT = {"sha256": "none"}
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


def train(trainer: Trainer, start: int, stop: int) -> None:
    for step in range(start, stop):
        trainer.step(step, *batch(trainer.model, trainer.train, step))


def whole(trainer: Trainer) -> list[dict]:
    """Parameters, and moments where there are any, whole, on rank 0; elsewhere nothing."""
    found = [trainer.params(), *(trainer.moments() or ())]
    return found if trainer.mesh.comm.rank == 0 else []


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


@mpi(4)
def test_every_number_is_written_once_and_by_the_rank_that_holds_it(comm, tmp_path):
    """The boxes of a tensor fill it without overlap; each file holds those boxes and no others;
    they are what ``where`` says its rank keeps of the moments, under ZeRO 1."""
    model = replace(MODEL, Hkv=2, tied=True)
    for i, layout in enumerate([Layout(tp=4), Layout(tp=2, dp=2, zero=1), Layout(pp=2, dp=2)]):
        trainer = Trainer(model, TRAIN, layout, comm)
        Saver(trainer, tmp_path / str(i), TEXT).save(1)
        path, content = opened(path_of(tmp_path / str(i), 1), comm)
        trainer.close()
        assert {*content["tensors"]} == {*names(model)}
        for name, shape in names(model).items():
            times = np.zeros(shape, int)
            for file, written in content["tensors"][name].items():
                for dims in written:
                    times[tuple(slice(*ends) for ends in dims)] += 1
                found = [key for key in load_file(path / file) if key.startswith(f"m/{name}[")]
                assert len(found) == len(written)
            assert (times == 1).all(), f"{layout.name}: {name}"
        if layout.zero:
            check_against_where(content, model, layout)


def check_against_where(content: dict, model, layout: Layout) -> None:
    for name in names(model):
        for held in where(name, model, TRAIN, layout):
            file = f"rank-{held.rank:04d}.safetensors"
            mine = content["tensors"][name].get(file, [])
            size = sum(prod(b - a for a, b in dims) for dims in mine)
            kept = held.kept["optimizer"].stop - held.kept["optimizer"].start
            assert size in (kept, 0) and (size == kept or held.at.tp > 0)


@mpi(2)
def test_saved_in_the_background_is_saved(comm, tmp_path):
    """Training goes on at once, in the very arrays, and the files are those of a save that waits;
    the checkpoint appears between two later steps, or at the end."""
    trainer = Trainer(MODEL, TRAIN, Layout(dp=2, zero=1), comm)
    train(trainer, 0, 1)
    Saver(trainer, tmp_path / "now", TEXT).save(1)
    saver = Saver(trainer, tmp_path / "later", TEXT, background=True)
    trained, write = threading.Event(), saver._write
    saver._write = lambda arrays: trained.wait() and write(arrays)  # a slow disk
    saver.save(1)
    train(trainer, 1, 3)
    saver.poll()
    assert not path_of(tmp_path / "later", 1).exists()
    trained.set()
    saver.finish()
    one, two = (opened(path_of(tmp_path / name, 1), comm) for name in ("now", "later"))
    assert one.content["files"] == two.content["files"]
    assert one.content["tensors"] == two.content["tensors"]
    saver.save(3)
    saver.save(4)  # begins when the one before is there
    assert comm.rank or path_of(tmp_path / "later", 3).exists()
    saver.finish()
    assert [path.name for path in steps(tmp_path / "later")][:2] == ["step-000004", "step-000003"]
    trainer.close()


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


@mpi(2)
def test_only_so_many_are_kept_and_what_a_killed_job_left_is_removed(comm, tmp_path):
    """keep = 2: the newest two; an unfinished one is no checkpoint and goes."""
    (tmp_path / "step-000007.tmp").mkdir(exist_ok=True)
    (tmp_path / "notes").mkdir(exist_ok=True)
    trainer = Trainer(MODEL, TRAIN, Layout(tp=2), comm)
    saver = Saver(trainer, tmp_path, TEXT, keep=2)
    for step in (1, 2, 10, 11):
        saver.save(step)
    comm.Barrier()
    names_there = sorted(os.listdir(tmp_path))
    assert names_there == ["notes", "step-000010", "step-000011"]
    trainer.close()


@mpi(2)
def test_a_rank_reads_only_what_it_keeps(comm, tmp_path):
    """From a checkpoint of one rank, each rank of ZeRO 3 reads its shard of three kinds."""
    alone = comm.Split(comm.rank)
    if comm.rank == 0:
        trainer = Trainer(MODEL, TRAIN, Layout(), alone)
        Saver(trainer, tmp_path, TEXT).save(1)
    comm.Barrier()
    trainer, read = Trainer(MODEL, TRAIN, Layout(dp=2, zero=3), comm), []
    original = Reader.read

    def counting(self, kind, name, box, dtype):
        read.append(prod(shape_of(box)))
        return original(self, kind, name, box, dtype)

    Reader.read = counting
    load(trainer, opened(path_of(tmp_path, 1), comm))
    total = sum(prod(s) for p in shapes(MODEL).values() for s in p.values())
    assert sum(comm.allgather(sum(read))) == 3 * total  # params, m, v
    trainer.close()


def test_a_flat_range_is_a_few_boxes_in_its_order():
    """Every range of a 3 × 4 × 5 tensor: the boxes, end to end, are its elements; at most five."""
    shape = (3, 4, 5)
    numbers = np.arange(prod(shape)).reshape(shape)
    for start, stop in product(range(61), repeat=2):
        parts = list(boxes(shape, start, stop))
        elements = [n for box in parts for n in numbers[box].reshape(-1)]
        assert elements == list(range(start, stop)) and len(parts) <= 5


def test_two_boxes_share_what_both_index():
    """Against sets of indices, for random boxes."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = (tuple(slice(*sorted(rng.integers(0, 7, 2))) for _ in range(3)) for _ in range(2))
        one, two = np.zeros((2, 6, 6, 6), bool)
        one[a], two[b] = True, True
        both = overlap(a, b)
        assert (both is None) == (not (one & two).any())
        if both:
            assert one[both].all() and two[both].all()
            assert prod(shape_of(both)) == (one & two).sum()
            assert moved(moved(both, a, -1), a) == both


def test_a_checkpoint_is_named_by_its_step():
    """The newest is the one of the largest step, not of the last letter."""
    assert path_of(Path("x"), 12).name == "step-000012"
    assert Checkpoint(Path("x"), {"step": 12}).step == 12
