"""Two steps on two ranks with one option after the other; prints the bits.  Run by
test_cupy_layouts.py, on NumPy and on the stand-in for CuPy."""

import zlib

from layout_cases import MODEL, TRAIN, batch
from mpi4py import MPI

from tparallel import tell
from tparallel.backend import to_host
from tparallel.config import Layout, ModelConfig, replace
from tparallel.train import Trainer

GPT2 = replace(MODEL, T=8)
LLAMA = ModelConfig(
    L=2, D=16, H=4, Hkv=2, T=8, V=23, norm="rmsnorm", position="rope", mlp="swiglu", bias="none"
)
PLAIN = (Layout(tp=2), Layout(pp=2, microbatches=2), Layout(dp=2, zero=2, microbatches=2))
CASES = [
    *((GPT2, {"dtype": dtype}, layout) for dtype in ("bfloat16", "float16") for layout in PLAIN),
    (GPT2, {}, Layout(dp=2, zero=1, offload=True)),
    (GPT2, {}, Layout(dp=2, zero=3, quantise="both")),
    (GPT2, {}, Layout(tp=2, recompute="selective")),
    (GPT2, {"dropout": 0.1}, Layout(tp=2, sp="regather", recompute="full")),
    (
        replace(GPT2, tied=True),
        {"optimizer": "sgd"},
        Layout(pp=2, microbatches=4, schedule="zb-h1"),
    ),
    (LLAMA, {}, Layout(tp=2)),
    (LLAMA, {}, Layout(dp=2, zero=3, overlap=False)),
]


def main(comm) -> None:
    for model, options, layout in CASES:
        train = replace(TRAIN, **options)
        trainer = Trainer(model, train, layout, comm)
        losses = [trainer.step(k, *batch(model, train, k)) for k in range(2)]
        losses.append(trainer.evaluate(*batch(model, train, 9)))
        bits = [zlib.crc32(to_host(flat).tobytes()) for flat in trainer.store.params.values()]
        tell.everyone(comm, f"{model.mlp} {options} {layout.name}: {losses} {bits}")
        trainer.close()


if __name__ == "__main__":
    main(MPI.COMM_WORLD)
