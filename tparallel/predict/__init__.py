"""What every rank will hold and send, and how long it will idle: closed forms.

Written from the dimensions alone, and apart from the code that they predict: nothing here looks
at a parameter, a layer or a message.  ``tparallel compare`` puts them beside what it measures.

``held``   bytes per rank: params, grads, optimizer, peak activations
``wire``   bytes that each rank sends over each mesh axis in one training step
``bubble`` the share of a step in which a pipeline stage computes nothing
``generation``  the same of new text: bytes sent and held, the idle share (asked for by name)
``part``   which share of the model a rank is responsible for (used by the first two)
"""

from .bubble import bubble
from .held import held
from .wire import wire

__all__ = ["bubble", "held", "wire"]
