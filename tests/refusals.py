"""Requests to a command that must be refused, each for its own reason."""

import argparse

import pytest

from tparallel.errors import TParallelError


def assert_refused(command, requests, **names) -> None:
    """Each line of flags (with ``{name}`` in it) by the text that it is to be refused with: *rule;
    values; way out*."""
    for line, said in requests:
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        with pytest.raises(TParallelError) as e:
            command.main(parser.parse_args(line.format(**names).split()))
        text = f"{type(e.value).__name__}: {e.value}"
        assert said in text, (line, text)
        assert any(way in text for way in ("Use ", "Leave ", "Give ", "Write ")), text
