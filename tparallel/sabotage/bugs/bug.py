"""What a bug is."""

from typing import NamedTuple

from ..patch import Edit

GITHUB = "https://github.com/"
NUMPITRON = "lweitkamp/numpitron"


class Bug(NamedTuple):
    """``edits`` put it into the program, ``layout`` is one where it bites, ``caught_by`` is the
    first check that must notice."""

    name: str
    what: str
    reports: tuple[str, ...]  # below GITHUB
    layout: dict
    caught_by: str
    edits: tuple[Edit, ...]


def bug(name: str, what: str, reports: str, layout: dict, caught_by: str, *edits: tuple) -> Bug:
    return Bug(name, what, tuple(reports.split()), layout, caught_by, tuple(map(Edit._make, edits)))
