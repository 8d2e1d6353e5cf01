"""A simulated schedule as rows of characters: a stage a row, time to the right.

Forward of micro-batch 3 is ``3``, its backward ``d`` (the fourth letter), its separate weight
gradient ``D``; a dot is a stage that waits: the bubble.
"""

from .schedule import F, W
from .simulate import COST, Event

DIGITS = "0123456789"
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def draw(events: list[Event], S: int) -> str:
    width = round(max(e.end for e in events))
    rows = [["."] * width for _ in range(S)]
    for e in events:
        if e.instruction.op in COST:
            for t in range(round(e.start), round(e.end)):
                rows[e.stage][t] = symbol(e.instruction.op, e.instruction.microbatch)
    return "\n".join(f"stage {s}  " + "".join(row) for s, row in enumerate(rows))


def symbol(op: str, m: int) -> str:
    if op == F:
        return DIGITS[m % len(DIGITS)]
    letter = LETTERS[m % len(LETTERS)]
    return letter.upper() if op == W else letter
