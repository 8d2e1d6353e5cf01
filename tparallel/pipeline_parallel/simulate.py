"""Run a schedule in virtual time, before any message exists.

Every stage does its next action as soon as it is free and what the action needs has arrived: the
forward of a chunk needs the forward of the chunk before it, a backward the backward of the chunk
after it, ``delay`` later if that is on another stage.  Messages take no time of their stages.

All stages advance together, one action each per round, as array operations: 1,024 stages and
4,096 micro-batches of 1F1B, eight million actions, take seconds.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .schedule import BW, B, F, Schedule, W
from .timeline import Timeline

COST = {F: 1.0, B: 1.0, W: 1.0, BW: 2.0}  # backward does two products for each one of forward


def simulate(schedule: Schedule, cost: Mapping = COST, delay: Any = 0.0) -> Timeline:
    """When each action starts and ends, in the unit of ``cost`` and ``delay``.

    ``cost[op]`` is a number, an array (chunks, 1), or (chunks, micro-batches).  ``delay``, of a
    message, is a number, or an array with an entry for each boundary between a chunk and the next.
    An action whose turn never comes, because the order forbids it, gets no time (NaN).
    """
    C, M = schedule.chunks, schedule.microbatches
    needs, gives, lag, seconds = _tables(schedule, cost, delay)
    finish = np.full(2 * (C + 2) * M, np.nan)  # when each result is there
    finish[:M] = finish[-M:] = -np.inf  # what the first forward and the last backward need
    lengths = np.array([len(order) for order in schedule.orders])
    start = np.full(needs.shape, np.nan)
    at, clock = np.zeros(schedule.stages, int), np.zeros(schedule.stages)
    busy = np.flatnonzero(lengths)
    while len(busy):
        k = at[busy]
        arrival = finish[needs[busy, k]] + lag[busy, k]
        come = ~np.isnan(arrival)
        go, k = busy[come], k[come]
        if not len(go):
            break
        start[go, k] = np.maximum(clock[go], arrival[come])
        clock[go] = start[go, k] + seconds[go, k]
        finish[gives[go, k]] = clock[go]
        at[go] += 1
        busy = busy[at[busy] < lengths[busy]]
    end = start + seconds
    return Timeline(
        schedule,
        tuple(start[s, :n] for s, n in enumerate(lengths)),
        tuple(end[s, :n] for s, n in enumerate(lengths)),
    )


def _tables(schedule: Schedule, cost: Mapping, delay: Any) -> tuple[np.ndarray, ...]:
    """For every action (stages, actions): the result that it needs and the one that it gives, how
    late the first one arrives, how long the action takes.

    A result is entry ``row · M + m`` of ``finish``.  Rows: the forwards of chunk -1 (always there),
    0, ..., C-1, then a row that nobody reads; the same for the backwards, of chunk C at the end.
    """
    C, M = schedule.chunks, schedule.microbatches
    chunk, where = np.arange(C), np.array(schedule.placement)
    back = C + 2 + chunk
    needs_row = _by_op({F: chunk, B: back + 2, BW: back + 2, W: 0 * chunk})
    gives_row = _by_op({F: chunk + 1, B: back + 1, BW: back + 1, W: 0 * chunk + C + 1})
    hop = np.where(where[1:] != where[:-1], np.broadcast_to(delay, C - 1), 0.0)
    after, before = np.append(0.0, hop), np.append(hop, 0.0)
    lag_of = _by_op({F: after, B: before, BW: before, W: 0.0 * chunk})
    seconds_of = _by_op({op: np.broadcast_to(cost.get(op, np.nan), (C, M)) for op in COST})
    shape = (schedule.stages, max(map(len, schedule.orders)))
    needs, gives = np.empty(shape, np.int32), np.empty(shape, np.int32)
    lag, seconds = np.zeros(shape), np.zeros(shape)
    for s, order in enumerate(schedule.orders):
        op, c, m = order.T
        n = len(order)
        needs[s, :n] = needs_row[op, c] * M + m
        gives[s, :n] = gives_row[op, c] * M + m
        lag[s, :n] = lag_of[op, c]
        seconds[s, :n] = seconds_of[op, c, m]
    return needs, gives, lag, seconds


def _by_op(table: dict) -> np.ndarray:
    return np.stack([table[op] for op in sorted(table)])
