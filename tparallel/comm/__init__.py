"""Everything that moves bytes between ranks.

Order: ``mesh`` (who am I, who are my neighbours on each axis), ``axis`` (the verbs: all_reduce,
all_gather, reduce_scatter, broadcast, send, recv), ``transport`` (how an array reaches MPI),
``ledger`` (what was moved, and how long it took), ``checked`` (do the ranks agree on the call?).
"""
