"""Change lines of functions of the running program, and change them back.

An ``Edit`` names a function and the text to replace in it.  The edited text is compiled, and the
function gets the new *code*: the function object stays the same, so that every module that has
imported it, and every table that holds it, runs the edited lines.
"""

import inspect
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import CodeType, FunctionType
from typing import NamedTuple


class Edit(NamedTuple):
    """In ``where`` (``"zero.store:Store.reduce"``) put ``new`` where ``old`` stands, once."""

    where: str
    old: str
    new: str


class Changed(Exception):
    """The text that an edit replaces is not there, or in several places."""


@contextmanager
def applied(edits: Iterable[Edit]) -> Iterator[None]:
    """The edits are in force in this process, on every thread, until the block ends."""
    before: dict[FunctionType, CodeType] = {}
    edits = list(edits)
    try:
        for where in dict.fromkeys(edit.where for edit in edits):
            function = find(where)
            new = edited(function, [edit for edit in edits if edit.where == where])
            before[function] = function.__code__
            function.__code__ = new
        yield
    finally:
        for function, code in before.items():
            function.__code__ = code


def find(where: str) -> FunctionType:
    """``"zero.store:Store.reduce"`` -> the function."""
    module, _, path = where.partition(":")
    found = import_module(f"tparallel.{module}")
    for name in path.split("."):
        found = getattr(found, name)
    assert isinstance(found, FunctionType), where
    return found


def edited(function: FunctionType, edits: Iterable[Edit]) -> CodeType:
    """The code of the function with the edits made in its text."""
    source = inspect.getsource(function)
    for edit in edits:
        if source.count(edit.old) != 1:
            raise Changed(f"{edit.where} holds {source.count(edit.old)} times: {edit.old!r}")
        source = source.replace(edit.old, edit.new)
    lines = "\n" * (function.__code__.co_firstlineno - 1)  # so that tracebacks name the line
    space: dict = {}
    code = compile(lines + textwrap.dedent(source), function.__code__.co_filename, "exec")
    exec(code, function.__globals__, space)
    return space[function.__name__].__code__


def diff(edits: Iterable[Edit]) -> list[str]:
    """The edits as people read them: the place, ``- old``, ``+ new``."""
    lines = []
    for where, old, new in edits:
        lines.append(where)
        lines += [f"- {line.strip()}" for line in old.strip().splitlines()]
        lines += [f"+ {line.strip()}" for line in new.strip().splitlines()]
    return lines
