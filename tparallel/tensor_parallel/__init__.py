"""How is one layer computed by several ranks?  ``serial/``'s layers, cut over the axis ``tp``.

Each file here has the names, the order and the lines of its twin in ``serial/``; what differs is
the method.  ``diff tparallel/serial/mlp.py tparallel/tensor_parallel/mlp.py`` shows it: a matrix
product whose inner dim is cut gives partial sums, and one sum over tp finishes them.

``split`` says which dim of which parameter is cut; norms, activations, heads and linear layers are
the serial ones, for they need no other rank.  ``region`` is what happens at a cut layer's border,
f and g: tensor or sequence parallel.  ``model`` puts them together.

Beside them, to compare with: ``summa``, a linear layer cut two ways, and ``whole_data``, the
simple way in which every rank holds everything and computes a part.
"""
