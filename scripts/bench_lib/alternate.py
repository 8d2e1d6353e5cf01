"""Time several programs in turn, in one run: machines drift, and only neighbours compare."""

import time
from collections.abc import Callable
from statistics import median


def alternate(steps: dict[str, Callable[[], None]], comm, rounds: int, warm_up: int) -> dict:
    """{name: seconds of each round}, of the slowest rank.  Every round runs every program once."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(warm_up + rounds):
        for name, step in steps.items():
            comm.Barrier()
            start = time.perf_counter()
            step()
            seconds[name].append(max(comm.allgather(time.perf_counter() - start)))
    return {name: times[warm_up:] for name, times in seconds.items()}


def row(bench: str, size: str, peer: str, ours: list, theirs: list, tokens: int) -> dict:
    """Medians in tokens/s, and the median of the rounds' ratios (which drift does not touch)."""
    return {
        "bench": bench,
        "size": size,
        "peer": peer,
        "ours": tokens / median(ours),
        "theirs": tokens / median(theirs),
        "unit": "tokens/s",
        "ratio": median(t / o for o, t in zip(ours, theirs)),
    }
