"""The share of a training step in which the pipeline's stages compute nothing."""

from ..config import Layout
from ..pipeline_parallel.simulate import simulate
from .part import schedule


def bubble(layout: Layout) -> float | None:
    """1 − busy / (S × makespan) of the schedule in virtual time, where a backward costs two
    forwards and messages nothing: (S−1) / (M+S−1) under GPipe and 1F1B alike.  None at pp = 1.

    Source: Narayanan et al. 2021, section 2.2.1
    """
    if layout.pp == 1:
        return None
    return simulate(schedule(layout)).bubble
