"""What the machine can do, and where a step's time goes."""

import time
from statistics import median

import numpy as np

from tparallel.config import ModelConfig
from tparallel.serial.parameters import count


def gemm_peak(n: int = 1024, rounds: int = 12) -> float:
    """GFLOP/s of NumPy's product of two n × n float32 matrices."""
    a, b, c = np.ones((3, n, n), np.float32)
    seconds = [timed(lambda: np.matmul(a, b, out=c)) for _ in range(rounds)]
    return 2 * n**3 / median(seconds) / 1e9


def timed(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def flops(c: ModelConfig, sequences: int) -> float:
    """Multiplications and additions of a step in the layers' products: 6 per weight and token,
    where a table that is only looked up does not count, and a tied one does, once."""
    weights = count(c) - c.T * c.D - (0 if c.tied else c.V * c.D)
    return 6.0 * weights * sequences * c.T


def time_in_products(step, rounds: int = 3) -> dict[str, float]:
    """The share of a step inside the functions of linear.py, and inside attention's heads."""
    from tparallel.serial import attention, head, mlp

    spent = {"products": 0.0, "heads": 0.0}

    def clocked(function, where: str):
        def wrapped(*args, **kwargs):
            start = time.perf_counter()
            out = function(*args, **kwargs)
            spent[where] += time.perf_counter() - start
            return out

        return wrapped

    for module in (attention, head, mlp):
        for name in [n for n in vars(module) if n.startswith(("linear_", "heads_"))]:
            where = "products" if name.startswith("linear_") else "heads"
            setattr(module, name, clocked(getattr(module, name), where))
    total = sum(timed(step) for _ in range(rounds))
    return {where: seconds / total for where, seconds in spent.items()}
