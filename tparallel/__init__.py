"""One transformer, written by hand, that several processes train in every way the field splits it.

Read in this order; each step needs only the ones before it.

1. ``serial/``             the whole truth on one process: forward beside backward, no MPI
2. ``comm/``               the mesh of ranks, the verbs that move bytes, the ledger that counts them
3. ``tensor_parallel/``    how is one layer computed?      diffs line by line against ``serial/``
4. ``pipeline_parallel/``  which layers live here, and in what order do they run?
5. ``zero/``               who stores and updates each number?
6. ``train.py``            the three together: the loop of ``serial/train.py`` on any mesh
7. ``layouts.py``, ``compare/``  every layout beside every other, measured and predicted
8. ``checkpoint/``         what training goes on from: saved by any layout, read by any other
9. ``weights/``            models in Hugging Face's format, read in slices and written;
                           ``evaluate.py`` asks them for losses and logits
10. ``generate/``          new text in any layout: prefill, decode, a cache of keys and values

Letters for array dims: B micro-batch on this rank, T sequence, D model, H heads, K head size,
F feed-forward, V vocabulary, L layers.  Counts: S stages, M micro-batches, n ranks of a group.
Mesh axes: ``tp``, ``pp``, ``dp``.  A shape comment is what this rank sees: ``# (B, T, F/tp)``.
"""

__version__ = "0.1.0"
