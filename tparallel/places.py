"""Where a weight's gradient is written: at once where the store keeps it, if nothing is there yet.

A layer's backward makes dW by a product and returns it, and the store adds it to what there is.
Of the first micro-batch there is nothing, and to copy the matrices of a whole model takes as long
as to add up a tenth of their products.  So while a layer goes back its places are ``offered``: a
product whose result has the shape of just one of them is written there.  Whoever asks for another
shape is given None, and makes a new array.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import prod

_empty: dict = {}  # (shape, dtype) -> the place


@contextmanager
def offered(views: Iterable) -> Iterator[None]:
    """For as long as it is entered, results may be written into these arrays."""
    views = list(views)
    alike = Counter((view.shape, view.dtype) for view in views)
    for view in views:
        if alike[view.shape, view.dtype] == 1:  # else nobody can tell which of them is meant
            _empty[view.shape, view.dtype] = view
    try:
        yield
    finally:
        _empty.clear()


def place(ins: tuple[int, ...], outs: tuple[int, ...], dtype):
    """An offered array of shape (*ins, *outs), as a matrix, to one who will write all of it; or
    None."""
    found = _empty.pop((ins + outs, dtype), None)
    return None if found is None else found.reshape(prod(ins), prod(outs))
