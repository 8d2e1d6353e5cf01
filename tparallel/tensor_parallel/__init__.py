"""How is one layer computed by several ranks?  ``serial/``'s layers, cut over the axis ``tp``.

Each file here has the names, the order and the lines of its twin in ``serial/``; what differs is
the method.  ``diff tparallel/serial/mlp.py tparallel/tensor_parallel/mlp.py`` shows it: a matrix
product whose inner dim is cut gives partial sums, and one ``all_reduce`` finishes them.

``split`` says which dim of which parameter is cut; norms, activations and linear layers are the
serial ones, for they need no other rank.
"""
