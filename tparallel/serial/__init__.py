"""The whole truth, readable with no knowledge of MPI.

Order: ``linear``, ``norm``, ``activation``, ``dropout``, ``heads``, ``attention``, ``mlp``,
``block``, ``embedding``, ``head``, ``loss``; then ``parameters`` (names, shapes, first values),
``model`` (the loop over layers), ``recompute``, ``adamw``, ``train``.

Every layer is a set of functions on explicit values::

    y, cache   = mlp_forward(x, p)
    dx, wcache = mlp_backward_input(dy, cache, p)      # what the layer below waits for
    grads      = mlp_backward_weight(wcache)           # what only the optimizer waits for
    dx, grads  = mlp_backward(dy, cache, p)            # both halves, in this order

``p`` and ``grads`` are dicts with the same keys.  A cache holds activations, never parameters.
"""
