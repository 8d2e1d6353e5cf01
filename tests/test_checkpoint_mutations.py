"""The checks of checkpoints can fail: each defect that is put in is noticed."""

from checkpoint_cases import TEXT, train, whole
from layout_cases import MODEL, TRAIN, same_bits
from mpitest import mpi

from tparallel.checkpoint import Saver, load, opened
from tparallel.checkpoint.folder import path_of
from tparallel.config import Layout, replace
from tparallel.errors import CheckpointError, NotFiniteError
from tparallel.sabotage.patch import Edit, applied
from tparallel.train import Trainer

SHARE, LOAD = "checkpoint.save:Saver._share", "checkpoint.load:load"
DEFECTS = {
    "the second moment is not read": Edit(
        LOAD,
        "kept = [*store.state().items()]",
        "kept = [(k, v) for k, v in store.state().items() if k != 'v']",
    ),
    "the first moment is that of the second": Edit(
        SHARE, "held = vectors[bucket]", "held = store.state()[kind.replace('v', 'm')][bucket]"
    ),
    "the halves are not read": Edit(LOAD, "if trainer.train.is_half", "if False"),
    "the masters are roundings": Edit(
        LOAD, "fill(", "values = values.astype('float16').astype('float32')\n" + 20 * " " + "fill("
    ),
    "the loss scale is not restored": Edit(
        LOAD, 'store.loss_scale.restore(checkpoint.content["loss_scale"])', "pass"
    ),
    "good steps are not counted on": Edit("zero.precision:LossScale.restore", 'state["good"]', "0"),
    "a box begins an element late": Edit(
        "checkpoint.pieces:pieces", "a - held.start, b", "a - held.start + (a > held.start), b"
    ),
    "tensors of rank 1 lie as on rank 0": Edit(
        "checkpoint.pieces:pieces", "tp.rank, tp.size)", "0, tp.size)"
    ),
    "rank 1 writes nothing": Edit(SHARE, "if not piece.first", "if self.comm.rank"),
}


@mpi(2, timeout=60)
def test_every_defect_is_noticed(comm, tmp_path):
    """Saved by tp = 2 and by ZeRO 2, read by the same and by the other, in float16: with a defect
    the bits of a run that goes on are not those of the uninterrupted one, or it is refused; without
    one they are."""
    assert goes_on_bitwise(comm, tmp_path / "none")
    for defect, edit in DEFECTS.items():
        with applied([edit]):
            assert not goes_on_bitwise(comm, tmp_path / defect), defect


def goes_on_bitwise(comm, folder) -> bool:
    """Is it so on all ranks, for two layouts, each from its own checkpoint; and do both read the
    checkpoint of the other as it does?"""
    config = replace(TRAIN, dtype="float16", loss_scale=2.0**19, scale_window=3, steps=6)
    layouts, good = [Layout(tp=2), Layout(dp=2, zero=2)], []
    try:
        for i, layout in enumerate(layouts):
            one = Trainer(MODEL, config, layout, comm)
            train(one, 0, 3)
            Saver(one, folder / str(i), TEXT).save(3)
            saved, scale = whole(one), one.store.loss_scale.state()
            found = opened(path_of(folder / str(i), 3), comm)
            two, other = (Trainer(MODEL, config, new, comm) for new in (layout, layouts[1 - i]))
            for trainer in (two, other):
                load(trainer, found)
                good.append(trainer.store.loss_scale.state() == scale)
                good += map(same_bits, whole(trainer), saved)
            train(one, 3, 6)
            train(two, 3, 6)
            good += map(same_bits, whole(two), whole(one))
    except (CheckpointError, NotFiniteError):
        good.append(False)
    return all(comm.bcast(good))
