"""Who stores and updates each number?

``partition`` lays a layer's parameters end to end and cuts the vector into equal shards;
``store`` keeps parameters, gradients and optimizer state by one table, ``SHARDED_FROM``.  Plain
data parallelism is stage 0 of the same table.
"""
