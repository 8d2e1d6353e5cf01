"""Schedules that run the two halves of backward apart, to fill the bubble with the second.

What a stage waits for is an input gradient (B); weight gradients (W) wait for nobody but the
optimizer.  "Late" is the number of micro-batches by which a W waits behind its B.
"""

from collections import Counter, deque

from .schedule import BW, B, F, Schedule, W, one_chunk_each, schedule_of


def zb_h1(S: int, M: int) -> Schedule:
    """1F1B whose weight gradients wait until there is nothing else to do: a third of the bubble,
    and S activations in flight on every stage.

    Source: Qi et al. 2023, section 2.2, figure 2
    """
    return one_chunk_each("zb-h1", S, M, lambda s: _halves(M, ahead=S - 1 - s, late=s))


def zb_h2(S: int, M: int) -> Schedule:
    """Twice as far ahead and twice as late: no bubble where F = B = W, for 2 S − 1 in flight.

    Source: Qi et al. 2023, section 2.3, figure 3
    """
    return one_chunk_each("zb-h2", S, M, lambda s: _halves(M, ahead=2 * (S - 1 - s), late=2 * s))


def _halves(M: int, ahead: int, late: int) -> list[tuple]:
    """Some forwards ahead, then F B W in turn, the W ``late`` micro-batches behind the B."""
    order = [(F, m) for m in range(min(ahead, M))]
    for m in range(M + late):
        order += [(F, ahead + m)] * (ahead + m < M) + [(B, m)] * (m < M)
        order += [(W, m - late)] * (0 <= m - late < M)
    return order


def zb_v(S: int, M: int) -> Schedule:
    """Two chunks per stage, folded into a V: the stage that begins a micro-batch also ends it.
    No bubble where F = B = W, in the memory of 1F1B's first stage, on every stage.

    Source: Qi et al. 2023, section 6
    """
    N = max(M, 2 * S - 1)  # what fills the pipeline

    def order(s):
        down, up = s, 2 * S - 1 - s
        return _phases(
            (2 * (S - s) - 1, [(F, down)]),
            (s, [(F, up), (F, down)]),
            (S - s, [(F, up), (B, up), W]),
            (N - 2 * S + 1 + s, [(F, down), (B, down), W, (F, up), (B, up), W]),
            (S - 1 - s, [(B, down), W, (F, up), (B, up), W]),
            (s, [(B, down), (B, up)]),
            (S - s, [(B, down), W]),
            (2 * s, [W]),
        )

    return schedule_of("zb-v", M, _folded(S), map(order, range(S)))


def dualpipe_v(S: int, M: int) -> Schedule:
    """The V of ``zb_v``, run as pairs of one forward and one whole backward of the other arm, so
    that the messages of one can hide behind the other; halves apart only where they fill a bubble.

    Source: DeepSeek-AI 2024, section 3.2.1 (DualPipe); DualPipeV halves it: one set of parameters
    """
    N = max(M, 2 * S)  # what fills the pipeline

    def order(s):
        down, up = s, 2 * S - 1 - s
        half, odd = divmod(s + 1, 2)
        return _phases(
            (2 * (S - 1 - s), [(F, down)]),
            (s + 1, [(F, down), (F, up)]),
            (S - 1 - s, [(B, up), W, (F, up)]),
            (N - 2 * S + s + 1, [(F, down), (BW, up), (F, up), (BW, down)]),
            (S - 1 - s, [(BW, up), (F, up), (BW, down)]),
            (half, [(BW, up), (BW, down)]),
            (odd, [(BW, up), (B, down)]),
            (half, [(B, up), (B, down)]),
            (S - 1 - s, [W, (B, down)]),
            (s + 1, [W]),
        )

    return schedule_of("dualpipe-v", M, _folded(S), map(order, range(S)))


def _folded(S: int) -> list[int]:
    """Down the stages and up again: 0, 1, ..., S − 1, S − 1, ..., 1, 0."""
    return [*range(S), *reversed(range(S))]


def _phases(*phases: tuple[int, list]) -> list[tuple]:
    """(times, pattern) after (times, pattern).  In a pattern, (operation, chunk) takes that
    chunk's next micro-batch, and W the oldest input gradient whose weight gradient is missing."""
    done: Counter = Counter()
    waiting: deque = deque()
    out = []
    for times, pattern in phases:
        for step in pattern * times:
            if step == W:
                out.append((W, *waiting.popleft()))
                continue
            op, chunk = step
            m = done[op == F, chunk]
            done[op == F, chunk] += 1
            out.append((op, chunk, m))
            if op == B:
                waiting.append((chunk, m))
    return out
