"""Fewer bits on the wire: blocks of integers with a scale each (ZeRO++).

A block of ``BLOCK`` numbers x becomes q = round(x / s) with s = max|x| / (2^(bits−1) − 1): 8 bits
for parameters on their way to be used, 4 bits for gradients on their way to be summed.  A message
of N numbers is ``size(N, bits)`` bytes: the integers, then a float32 scale per block.

Against N numbers in half precision: 8 bits are 0.5 + 2/BLOCK of the bytes, 4 bits 0.25 + 2/BLOCK
(0.508 and 0.258).  What is stored stays as it was; only what arrives is rounded, and every rank,
the owner included, computes with the same rounded parameters.

Source: Wang et al. 2023 (ZeRO++), sections 3.1 (qwZ: parameters) and 3.3 (qgZ: gradients, summed
within a group first, so that each number crosses between groups once per group)
"""

from collections.abc import Callable
from typing import Any

from ..backend import xp

BLOCK = 256


def size(n: int, bits: int) -> int:
    """Bytes of a message of n numbers."""
    blocks = -(-n // BLOCK)
    return blocks * (BLOCK * bits // 8 + 4)


def encode(x, bits: int):
    """Rows of numbers (r, n) as rows of bytes (r, size(n, bits))."""
    rows, n = x.shape
    blocks = -(-n // BLOCK)
    padded = xp.zeros((rows, blocks * BLOCK), xp.float32)
    padded[:, :n] = x
    padded = padded.reshape(rows, blocks, BLOCK)
    top = 2 ** (bits - 1) - 1
    scale = xp.abs(padded).max(-1, keepdims=True) / xp.float32(top)  # (r, blocks, 1)
    q = xp.rint(padded / xp.where(scale == 0, xp.float32(1), scale)).astype(xp.int8)
    q = q.reshape(rows, -1).view(xp.uint8)
    if bits == 4:
        q = (q[:, ::2] & 15) | (q[:, 1::2] << 4)
    return xp.concatenate([q, scale.reshape(rows, -1).view(xp.uint8)], axis=1)


def decode(message, n: int, bits: int):
    """Rows of bytes (r, size(n, bits)) as rows of float32 (r, n)."""
    rows, blocks = len(message), -(-n // BLOCK)
    scale = xp.ascontiguousarray(message[:, -4 * blocks :]).view(xp.float32)  # (r, blocks)
    q = message[:, : -4 * blocks]
    if bits == 4:
        low, high = (q << 4).view(xp.int8) >> 4, q.view(xp.int8) >> 4
        q = xp.stack([low, high], axis=-1)
    x = q.view(xp.int8).reshape(rows, blocks, BLOCK) * scale[..., None]
    return x.reshape(rows, -1)[:, :n]


class Then:
    """A started transfer whose result still has to be made of what arrives."""

    def __init__(self, pending: Any, make: Callable):
        self.pending, self.make = pending, make

    def wait(self):
        return self.make(self.pending.wait())


def start_all_gather(axis, x, *, what: str, out) -> Then:
    """Everybody's ``x`` (k), rounded to 8 bits, into ``out`` (n k)."""
    sent = encode(x.reshape(1, -1), bits=8)

    def unpack(messages):
        out.reshape(axis.size, -1)[...] = decode(messages, len(x), bits=8)
        return out

    return Then(axis.start_all_gather(sent, what=f"{what} int8"), unpack)


def start_reduce_scatter(axes: list, x, *, what: str) -> Then:
    """The sum of everybody's ``x`` (n k), this rank's part (k), each number rounded to 4 bits
    before it travels.

    ``axes``: [dp], or [near, far]: first within the group, for the ranks of all groups that
    stand where the receiver stands in its own; then those sums, across groups.
    """
    near, far = axes[0], axes[1] if len(axes) > 1 else None
    groups = far.size if far else 1
    pieces = x.reshape(groups, near.size, -1).swapaxes(0, 1)  # (near, far, k)
    k = pieces.shape[-1]

    def cross(message):
        mine = _sum(decode(message, groups * k, bits=4))
        if far is None:
            return mine.astype(x.dtype)
        sent = encode(mine.reshape(groups, k), bits=4)
        arrived = far.all_to_all(sent, what=f"{what} int4")
        return _sum(decode(arrived, k, bits=4)).astype(x.dtype)

    sent = encode(pieces.reshape(near.size, groups * k), bits=4)
    return Then(near.start_all_to_all(sent, what=f"{what} int4"), cross)


def _sum(parts):
    """Over ranks, in rank order."""
    total = parts[0].copy()
    for part in parts[1:]:
        total += part
    return total
