"""What is really held: bytes of live arrays, each buffer counted once.

A view keeps the whole array alive that it looks into, so that array is what counts, once, however
many views of it there are.  Nothing is estimated: the arrays are walked where they are held.  On a
GPU the pool is watched too, which sees every temporary array.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..backend import xp


def buffers(*held: Any) -> dict[int, Any]:
    """The arrays that own the memory behind everything in nested dicts, lists and tuples."""
    out: dict[int, Any] = {}
    for value in held:
        if isinstance(value, xp.ndarray):
            owner = value
            while isinstance(owner.base, xp.ndarray):
                owner = owner.base
            out[id(owner)] = owner
        elif isinstance(value, dict):
            out |= buffers(*value.values())
        elif isinstance(value, list | tuple):
            out |= buffers(*value)
        else:
            out |= buffers(*getattr(value, "arrays", ()))  # of a transfer under way
    return out


def nbytes(*held: Any) -> int:
    """Bytes behind nested dicts, lists and tuples of arrays; shared memory counts once."""
    return sum(a.nbytes for a in buffers(*held).values())


@contextmanager
def pool_peak() -> Iterator[list[int]]:
    """Yields a list that, at the end of the block, holds the most bytes that the device's pool had
    handed out at once, temporary arrays and all; empty on NumPy, which has no pool."""
    found: list[int] = []
    if xp is np:
        yield found
        return

    class Peak(xp.cuda.MemoryHook):  # type: ignore[name-defined]
        name = "tparallel peak"
        now = top = xp.get_default_memory_pool().used_bytes()

        def malloc_postprocess(self, **block: Any) -> None:
            self.now += block["mem_size"]
            self.top = max(self.top, self.now)

        def free_postprocess(self, **block: Any) -> None:
            self.now -= block["mem_size"]

    with Peak() as peak:
        yield found
    found.append(peak.top)


class Watch:
    """Looks on while a step runs: ``with Watch(store) as watch: executor.run(..., after=watch)``.

    ``activations_peak``  the most that caches hold between two computations of this rank
    ``gathered_peak``     the most that parameters put together for use (ZeRO 3) hold at once
    Errors: RuntimeError if a cache holds a parameter, which would keep it alive unseen.
    """

    def __init__(self, store: Any):
        self.store, self.activations_peak, self.gathered_peak = store, 0, 0
        self._room = store.room
        self._gathered: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

    def __enter__(self) -> "Watch":
        self.store.room = self._room_and_look
        return self

    def __exit__(self, *error: Any) -> None:
        del self.store.room  # uncovers the method

    def __call__(self, executor: Any) -> None:
        caches = buffers(executor.caches, executor.wcaches)
        if caches.keys() & (buffers(self.store.params).keys() | self._gathered.keys()):
            raise RuntimeError("a cache holds a parameter: under ZeRO 3 nothing would be freed")
        self.activations_peak = max(self.activations_peak, nbytes(caches))

    @property
    def gathered(self) -> int:
        """Bytes of gathered parameters that are alive now."""
        return nbytes(dict(self._gathered))

    def _room_and_look(self, bucket: str) -> Any:
        room = self._room(bucket)
        self._gathered[id(room)] = room
        self.gathered_peak = max(self.gathered_peak, self.gathered)
        return room
