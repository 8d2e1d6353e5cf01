"""The whole truth, readable with no knowledge of MPI.

Order: ``linear``, ``norm``, ``activation``, ``dropout``, ``rope``, ``context`` (what every layer
is told), ``heads``, ``attention``, ``mlp``, ``block``, ``embedding``, ``head``, ``loss``; then
``parameters`` (names, shapes and first values; which exist makes a GPT-2, a Llama or a Qwen2),
``model`` (the loop over layers), ``recompute``, ``adamw``, ``train``.

Every layer is a set of functions on explicit values::

    y, cache   = mlp_forward(x, p)                     # others also take the context, ``at``
    dx, wcache = mlp_backward_input(dy, cache, p)      # what the layer below waits for
    grads      = mlp_backward_weight(wcache)           # what only the optimizer waits for
    dx, grads  = mlp_backward(dy, cache, p)            # both halves, in this order

``p`` and ``grads`` are dicts with the same keys.  A cache holds activations, never parameters.
"""
