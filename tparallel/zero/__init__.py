"""Who stores and updates each number?

``partition`` lays layers end to end and cuts the vector into equal shards; ``store`` keeps
parameters, gradients and optimizer state by one table, ``SHARDED_FROM``.  Plain data parallelism
is stage 0 of the same table.  What the store leaves to others, a page each:

``moves``      how shards become whole and gradients become sums: over dp, or in groups
``flight``     transfers that are on their way while something else is computed
``optimizer``  the update of this rank's part, and ``norm``, the gradient norm of the whole job
``precision``  half for what is stored and sent, float32 for arithmetic, the loss scale
``offload``    optimizer state outside of the parameters' memory
``quantised``  8 and 4 bits on the wire
"""
