"""The sizes of the benchmarks, and what a step of each trains on."""

from tparallel.config import ModelConfig

SIZES = {
    "tiny": (ModelConfig(L=4, D=64, H=8, T=32, V=256), 2),
    "S": (ModelConfig(L=4, D=256, H=8, T=128, V=256), 8),
    "M": (ModelConfig(L=6, D=512, H=8, T=256, V=256), 4),
    "L": (ModelConfig(L=12, D=768, H=12, T=256, V=50257, tied=True), 1),  # GPT-2, 124 M
}  # name -> (model, sequences of a micro-batch)
