"""``python -m tparallel.kernels``: compile the fast kernels now, so that no run waits for it.

Where they are kept, ``cache.py`` says.
"""

import numpy as np

from ..config import ModelConfig, TrainConfig
from ..serial.context import context
from . import fast


def compile_all() -> None:
    for dtype in (np.float32, np.float64):
        x, g = np.ones((1, 2, 4), dtype), np.ones(4, dtype)
        for p in ({"g": g, "b": g}, {"g": g}):
            _, norm = fast.norm_forward(x, p, 1e-5)
            fast.norm_backward_weight(fast.norm_backward_input(x, norm, p)[1])
        for h, b in ((x, g), (x[None], np.ones((2, 4), dtype))):
            fast.activation_forward(h, b)
            fast.activation_forward(h)
        fast.rows_backward((2, 4), np.zeros(2, np.int64), x)
        fast.cross_entropy_forward(x, np.zeros((1, 2), np.int64), 2)
        q, kv = np.ones((1, 2, 1, 4), dtype), np.ones((1, 2, 2, 1, 4), dtype)
        z, cache = fast.heads_forward(q, kv)
        fast.heads_backward(z, cache)
        turning = ModelConfig(K=4, T=2, position="rope")
        fast.rope_forward(q, kv, context(turning, np.dtype(dtype).name))
        w, g, m, v = np.ones((4, 4), dtype)
        fast.adamw_update(w, g, m, v, 0, 0.1, 0.0, TrainConfig())


if __name__ == "__main__":
    compile_all()
