"""Mixed precision: numbers are stored and sent in half, computed in float32.

                 bytes per parameter   float32, AdamW    half, AdamW
    params                                   4                2
    grads                                    4                2
    optimizer    master weights              -                4
                 moments m and v             8                8      (K = 12 with the master)
                                            16               16

The master weights are what the optimizer updates: an update is often smaller than half the step
between two neighbouring half-precision numbers, and would round away.  NumPy has no arithmetic in
half worth its name, so a layer's parameters are widened to float32 when they are used.

float16 also has a narrow range: small gradients become zero.  They are multiplied by a *loss
scale* before they are stored and divided by it before they are used; if one overflows, the step
is skipped on every rank and the scale is halved.

Source: Micikevicius et al. 2018, section 3; K = 12: Rajbhandari et al. 2020, section 3.1
"""

from math import isfinite

import numpy as np

from ..backend import xp
from ..config import TrainConfig
from ..kernels.table import Rows


def storage_dtype(name: str) -> np.dtype:
    """The dtype in which parameters and gradients are kept and sent."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def write_into(total, x) -> None:
    """total = x, the first to come, unless x was computed in its place."""
    if isinstance(x, Rows):
        total[...] = 0
        add_into(total, x)
    elif not xp.may_share_memory(total, x):
        total[...] = x


def add_into(total, x) -> None:
    """total += x, added in the wider of the two dtypes and rounded once."""
    if isinstance(x, Rows):
        x.add_to(total)
    elif total.dtype.itemsize == 2:
        total[...] = total.astype(np.float32) + x
    else:
        total += x


class LossScale:
    """What the gradients are multiplied by while they are stored; 1 except for float16."""

    def __init__(self, c: TrainConfig):
        self.dynamic = c.dtype == "float16"
        self.scale = c.loss_scale if self.dynamic else 1.0
        self.window, self.good, self.skipped = c.scale_window, 0, 0

    def state(self) -> dict:
        """What a checkpoint keeps of it, for JSON."""
        return {"scale": self.scale, "good": self.good, "skipped": self.skipped}

    def restore(self, state: dict) -> None:
        self.scale, self.good, self.skipped = state["scale"], state["good"], state["skipped"]

    def accepts(self, norm: float) -> bool:
        """May this step be taken?  ``norm`` is known to every rank, so all decide alike.

        Overflow halves the scale; ``window`` good steps in a row double it.
        """
        if not self.dynamic:
            return True
        if not isfinite(norm):
            self.scale, self.good, self.skipped = self.scale / 2, 0, self.skipped + 1
            return False
        self.good += 1
        if self.good == self.window:
            self.scale, self.good = self.scale * 2, 0
        return True


def scaled(loss: tuple, loss_scale: LossScale) -> tuple:
    """The loss functions, with the gradient that starts the backward pass multiplied."""
    if not loss_scale.dynamic:
        return loss
    forward, backward = loss
    return forward, lambda cache: backward(cache) * xp.float32(loss_scale.scale)
