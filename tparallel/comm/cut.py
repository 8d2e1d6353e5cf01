"""A vector cut into one piece per rank."""

from functools import lru_cache
from itertools import accumulate, pairwise


def pieces(size: int, n: int) -> list[int]:
    """Sizes of n consecutive pieces, as equal as can be, the longer ones first."""
    return [size // n + (r < size % n) for r in range(n)]


@lru_cache(4096)
def spans(size: int, n: int) -> tuple[slice, ...]:
    """Where these pieces are."""
    ends = accumulate(pieces(size, n), initial=0)
    return tuple(slice(start, end) for start, end in pairwise(ends))
