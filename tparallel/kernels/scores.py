"""Passes over a block of attention's scores by NumPy: the twins of those in ``compiled.py``.

exp2 takes half the time of exp where NumPy has it in vector instructions (AVX-512), so everything
here counts in powers of two.
"""

from functools import lru_cache
from math import e as EULER
from math import log2

import numpy as np

LOG2E = log2(EULER)
LOWEST = -80 * LOG2E  # e^-80 is a normal float32; below 1e-38 every product that meets it crawls
SMALL = 20  # scores whose exponentials need no shift


def exp(x):
    """x ← e^x in place, for x ≤ 0."""
    x *= LOG2E
    np.clip(x, LOWEST, 0, out=x)
    np.exp2(x, out=x)


def row_maxima(s, top, first, scale):
    """``top`` (H, T) ← the maximum of each row of scaled causal scores s (H, rows, columns), which
    are the rows first, first+1, ...; zeros if all of the block are so small that no exponential
    needs a shift: the maximum of a row takes longer than its exponentials."""
    here = top[:, first : first + s.shape[1]]
    if scale * s.max() <= SMALL and scale * s.min() >= -SMALL:
        here[...] = 0
    else:
        np.copyto(s[:, :, first:], -np.inf, where=_seen(s.shape[1], "i1") == 0)
        np.multiply(s.max(-1), scale, out=here)


def exponentials(s, top, inverse, first, scale):
    """s ← e^(scale s − top), zero right of the diagonal; ``inverse`` (H, T) ← 1 / row sum."""
    rows, columns = s.shape[1:]
    here = top[:, first : first + rows]
    s *= scale * LOG2E
    if here.any():
        s -= LOG2E * here[:, :, None]
        np.clip(s, LOWEST, 0, out=s)
    np.exp2(s, out=s)
    bits = f"i{s.itemsize}"
    square = s[:, :, first:].view(bits)
    square &= _seen(rows, bits)  # NaN & 0 = 0: what is not seen cannot break a row
    np.divide(1, s @ np.ones(columns, s.dtype), out=inverse[:, first : first + rows])


def softmax_block_backward(ds, e, inverse, first):
    """ds ← e (ds − inverse Σ_j e ds), row by row, in place."""
    along = np.vecdot(ds, e)
    along *= inverse[:, first : first + ds.shape[1]]
    ds -= along[:, :, None]
    ds *= e


@lru_cache
def _seen(rows: int, dtype: str):
    """For the square at the diagonal: all bits of a number, or none of them."""
    return -np.tri(rows, dtype=dtype)
