"""The rules that several checks share, and the lists of choices in their texts."""

from collections.abc import Iterable

from ..errors import ConfigError, LayoutError, TParallelError


def at_least(least: int, name: str, value: int, error: type[TParallelError]) -> None:
    if value < least:
        raise error(
            f"{name} must be at least {least}: {name} = {value}. Use {name} of {least} or more."
        )


def one_of(
    name: str, value: str, allowed: tuple[str, ...], error: type[TParallelError] = ConfigError
) -> None:
    if value not in allowed:
        named = [a or f"no {name}" for a in allowed]
        raise error(
            f"{name} is not one that is known: {name} = {value}. Use {name} {either(named)}."
        )


def whole(key: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise LayoutError(f"{key} must be a whole number: {key}={value}. Use {key}=2.") from None


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def either(choices: Iterable) -> str:
    """``2, 3 or 6``: the first eight."""
    *most, last = [str(c) for c in choices][:8]
    return f"{', '.join(most)} or {last}" if most else last


def nearest(n: int, wanted: int) -> int:
    return min(divisors(n), key=lambda d: abs(d - wanted))
