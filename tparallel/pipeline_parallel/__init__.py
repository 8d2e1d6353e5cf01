"""Which layers live here, and in what order do they run?

A schedule is data, and everything is done to the same data:

``schedule``   what one is: chunk -> stage, and the order of computations of every stage
``schedules`` ``zero_bubble``   the eight of the field, each a short function
``text``       reads your own
``simulate``   runs it in virtual time; ``timeline`` says what comes out: makespan, bubble, path
``program``    adds the messages that it implies, by a local rule
``validate``   refuses what cannot run; ``messages`` refuses messages that do not meet
``draw`` ``svg`` ``trace``   show it: in the terminal, as a picture, for a trace viewer
``stage``      which layers a chunk holds, and the loop over them
``execute``    runs it; ``measured`` brings every rank's clock together
"""
