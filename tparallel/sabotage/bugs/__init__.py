"""The bugs: each has been found in somebody's program, and most were found late.

Most of them train: look at the loss curves that ``tparallel sabotage`` prints.
"""

from ...errors import ConfigError
from . import pipeline, serial, tensor, zero
from .bug import GITHUB, Bug

BUGS: dict[str, Bug] = {
    bug.name: bug for part in (serial, tensor, pipeline, zero) for bug in part.BUGS
}


def chosen(names: list[str]) -> list[Bug]:
    """The bugs of these names, or all.  Errors: ConfigError for a name that is not one."""
    for name in names:
        if name not in BUGS:
            raise ConfigError(f"no such bug: {name}. Use one of {', '.join(BUGS)}.")
    return [BUGS[name] for name in names or BUGS]


__all__ = ["BUGS", "GITHUB", "Bug", "chosen"]
