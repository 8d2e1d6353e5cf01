"""How rotary positions are scaled to texts that are longer than those of the first training.

As text: a kind, and its numbers as key=value pairs, ``llama3:factor=32,original=8192``.  What each
kind does with them is in serial/rope.py.
"""

from typing import NamedTuple

from ..errors import ConfigError

REQUIRED = -1.0
NUMBERS: dict[str, dict[str, float]] = {  # kind -> its numbers and their usual values
    "none": {},
    "linear": {"factor": REQUIRED},
    "dynamic": {"factor": REQUIRED, "original": REQUIRED},
    "llama3": {"factor": REQUIRED, "low": 1.0, "high": 4.0, "original": REQUIRED},
    "yarn": {
        "factor": REQUIRED,
        "original": REQUIRED,
        "fast": 32.0,
        "slow": 1.0,
        "attention": 0.0,  # what cos and sin are multiplied by; 0: 0.1 ln(factor) + 1
    },
}


class RopeScaling(NamedTuple):
    """``kind`` and its numbers; those that a kind does not have are 0.

    ``factor`` is how many times longer texts get than ``original`` tokens, the length of the first
    training.  ``low`` and ``high``, or ``slow`` and ``fast``: full turns in ``original`` tokens
    below which a frequency is divided by ``factor``, and above which it stays.
    """

    kind: str = "none"
    factor: float = 0.0
    original: float = 0.0
    low: float = 0.0
    high: float = 0.0
    fast: float = 0.0
    slow: float = 0.0
    attention: float = 0.0

    def __str__(self) -> str:
        given = [name for name in NUMBERS[self.kind] if getattr(self, name)]
        numbers = [f"{name}={getattr(self, name):.15g}" for name in given]
        return ":".join([self.kind, ",".join(numbers)] if numbers else [self.kind])

    @staticmethod
    def parse(text: str) -> "RopeScaling":
        """Errors: ConfigError for a kind, a name or a number that is not one, or is missing."""
        kind, _, rest = text.partition(":")
        if kind not in NUMBERS:
            raise ConfigError(
                f"rope_scaling is not one that is known: rope_scaling = {text}. Use "
                f"{'; '.join(map(_example, NUMBERS))}."
            )
        values = dict(NUMBERS[kind])
        for part in filter(None, rest.split(",")):
            name, _, number = (word.strip() for word in part.partition("="))
            if name not in values:
                raise ConfigError(
                    f"{kind} scaling has the numbers {', '.join(values) or '(none)'}: {part!r} is "
                    f"not one of them. Use {_example(kind)}."
                )
            values[name] = _positive(kind, name, number)
        missing = [name for name, value in values.items() if value == REQUIRED]
        if missing:
            raise ConfigError(
                f"{kind} scaling needs {' and '.join(missing)}: rope_scaling = {text}. "
                f"Use {_example(kind)}."
            )
        return RopeScaling(kind, **values)


def _positive(kind: str, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ConfigError(
            f"the numbers of a scaling must be positive: {name} = {text}. Use {_example(kind)}."
        )
    return value


def _example(kind: str) -> str:
    numbers = {"factor": "8", "original": "8192"}
    needed = [f"{n}={numbers[n]}" for n, value in NUMBERS[kind].items() if value == REQUIRED]
    return ":".join([kind, ",".join(needed)] if needed else [kind])
