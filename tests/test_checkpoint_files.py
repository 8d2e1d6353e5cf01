"""What a checkpoint writes, when, and how much of it a rank reads."""

import os
import threading
from itertools import product
from math import prod
from pathlib import Path

import numpy as np
import pytest
from checkpoint_cases import TEXT, train
from layout_cases import MODEL, TRAIN
from mpitest import mpi
from safetensors.numpy import load_file

from tparallel.checkpoint import Saver, load, opened
from tparallel.checkpoint.box import boxes, moved, overlap, shape_of
from tparallel.checkpoint.folder import Checkpoint, path_of, steps
from tparallel.checkpoint.load import Reader
from tparallel.config import Layout, replace
from tparallel.serial.parameters import shapes
from tparallel.train import Trainer
from tparallel.where import names, where


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

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reader, "read", counting)
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
