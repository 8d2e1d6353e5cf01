"""Derivatives from a function's values alone, in float64.

f'(0) ≈ (8 (f(h) − f(−h)) − (f(2h) − f(−2h))) / 12h.  The error, about h⁴/30 f⁽⁵⁾ + 1e-16 f/h, is
far below the 1e-6 that the tests ask for, so that whatever they see is the derivative's.
"""

from collections.abc import Callable

import numpy as np

from tparallel.compare.equality import relative_error

H = 3e-4


def along(f: Callable[[], float], x: np.ndarray, direction: np.ndarray) -> float:
    """The derivative of ``f()`` as ``x``, which f reads, moves along ``direction``."""
    start = x.copy()

    def at(step: float) -> float:
        x[...] = start + step * direction
        return f()

    slope = (8 * (at(H) - at(-H)) - (at(2 * H) - at(-2 * H))) / (12 * H)
    x[...] = start
    return slope


def directional_error(f, x, dx, rng, directions: int = 2) -> float:
    """The worst relative error of <dx, r> over random directions r of length 1."""
    errors = []
    for _ in range(directions):
        r = rng.normal(size=x.shape)
        r /= np.linalg.norm(r)
        errors.append(relative_error((dx * r).sum(), along(f, x, r)))
    return max(errors)


def entry_error(f, x, dx) -> float:
    """Error of the whole of ``dx`` against the derivative of every single entry of ``x``."""
    return relative_error(dx, entries(f, x))


def entries(f, x) -> np.ndarray:
    """df/dx, entry by entry: four calls of ``f`` each, so for small tensors."""
    slopes = np.empty(x.shape)
    for i in np.ndindex(x.shape):
        direction = np.zeros(x.shape)
        direction[i] = 1.0
        slopes[i] = along(f, x, direction)
    return slopes
