"""Two steps in half precision on two ranks; prints the bits.  Run by test_cupy_layouts.py."""

import zlib

from layout_cases import MODEL, TRAIN, batch
from mpi4py import MPI

from tparallel import tell
from tparallel.backend import to_host
from tparallel.config import Layout, replace
from tparallel.train import Trainer

LAYOUTS = (Layout(tp=2), Layout(pp=2, microbatches=2), Layout(dp=2, zero=2, microbatches=2))


def main(comm) -> None:
    for dtype in ("bfloat16", "float16"):
        train = replace(TRAIN, dtype=dtype)
        for layout in LAYOUTS:
            trainer = Trainer(MODEL, train, layout, comm)
            losses = [trainer.step(k, *batch(MODEL, train, k)) for k in range(2)]
            bits = [zlib.crc32(to_host(flat).tobytes()) for flat in trainer.store.params.values()]
            tell.everyone(comm, f"{dtype} {layout.name}: {losses} {bits}")
            trainer.close()


if __name__ == "__main__":
    main(MPI.COMM_WORLD)
