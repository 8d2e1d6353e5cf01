"""A table's gradient of which few rows are not zero: what a batch's tokens leave of a vocabulary.

Like an array of the table's ``shape`` wherever NumPy is given it; only whoever adds it to the
table's gradient need know that most of it is not there.
"""

import numpy as np


class Rows:
    """``rows`` (n, D) of a table, the others zero; ``numbers`` (n) of them, each once."""

    def __init__(self, shape: tuple[int, ...], numbers, rows):
        self.shape, self.dtype = shape, rows.dtype
        self.numbers, self.rows = numbers, rows

    def add_to(self, table) -> None:
        table[self.numbers] = table[self.numbers] + self.rows  # no number twice

    def __getitem__(self, key):
        return np.asarray(self)[key]

    def __array__(self, dtype=None, copy=None):
        table = np.zeros(self.shape, dtype or self.dtype)
        self.add_to(table)
        return table


def no_rows(shape: tuple[int, ...], numbers, dtype) -> tuple[Rows, np.ndarray]:
    """Zeros for the rows of these ``numbers``, and where among them each number's row is."""
    each, places = np.unique(numbers, return_inverse=True)
    return Rows(shape, each, np.zeros((len(each), shape[1]), dtype)), places.reshape(-1)
