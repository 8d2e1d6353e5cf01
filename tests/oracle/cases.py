"""The questions: models, batches and training runs for ``serial`` and for its PyTorch twin."""

from typing import NamedTuple

import numpy as np

from tparallel.config import ModelConfig, TrainConfig, preset

STEPS, GLOBAL_BATCH, MICROBATCHES = 10, 8, 4
CLIP = 0.6  # below the gradient norms of some steps of every run, above those of others


# Of the two frequencies one stays, one is between; ε and every angle are large enough to see.
SCALED = {
    "norm_eps": 0.01,
    "rope_theta": 9.0,
    "rope_scaling": "llama3:factor=8,original=9,low=0.2,high=0.9",
}


class Case(NamedTuple):
    model: ModelConfig
    T: int = 0  # tokens in a sequence; 0: all that the model allows

    def train(self, optimizer: str) -> TrainConfig:
        """Warm-up and cosine, clipping, decay strong enough to see, a step large enough too."""
        return TrainConfig(
            steps=STEPS,
            global_batch=GLOBAL_BATCH,
            optimizer=optimizer,
            lr={"sgd": 0.5, "adamw": 0.03}[optimizer],
            warmup=3,
            weight_decay=0.2,
            clip=CLIP,
            seed=5,
            dtype="float64",
            init="random",
        )

    def batches(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and targets (STEPS, GLOBAL_BATCH, T), the first and the last id among them."""
        T, V = self.T or self.model.T, self.model.V
        text = np.random.default_rng(self.model.D).integers(0, V, (STEPS, GLOBAL_BATCH, T + 1))
        text[:, 0, 1], text[:, 0, 2] = V - 1, 0
        return text[..., :-1], text[..., 1:]


# Every letter has its own value, mostly odd, so that no two dims can be mixed up unseen.
GOLDEN = {
    "untied": Case(ModelConfig(L=2, D=6, H=3, T=5, V=11, F=10)),
    "tied": Case(ModelConfig(L=2, D=10, H=2, T=6, V=13, F=9, tied=True)),
    "grouped": Case(ModelConfig(L=2, D=8, H=4, Hkv=2, T=5, V=11, F=7)),
    "llama": Case(
        preset("llama", L=1, D=6, H=3, K=4, T=5, V=9, F=5, norm_eps=0.01, rope_theta=9.0)
    ),
    "qwen2": Case(preset("qwen2", L=1, D=8, H=2, Hkv=1, T=6, V=7, F=5, **SCALED)),
}

# Too large to commit: these run only where PyTorch is installed.
LIVE = GOLDEN | {
    "short": Case(ModelConfig(L=3, D=15, H=5, T=9, V=259, tied=True), T=7),
    "wide": Case(ModelConfig(L=2, D=64, H=4, T=33, V=257)),
}
