"""Which layers live here, and in what order do they run?

A schedule is data, and goes through five hands: ``schedule`` writes the order of computations of
every stage, ``program`` adds the messages that it implies, ``simulate`` runs it in virtual time
(and refuses what is incomplete or would deadlock), ``draw`` shows it, ``execute`` runs it.
``stage`` says which layers a stage holds.
"""
