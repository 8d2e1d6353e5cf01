"""The checkpoints of a folder: which are whole, and why the others are refused."""

import argparse
from pathlib import Path

from ..checkpoint import folder
from ..checkpoint.manifest import Damaged
from ..config import Layout
from ..errors import CheckpointError

EXAMPLES = """examples:
  tparallel checkpoint run              those that tparallel train --save run has written
  tparallel checkpoint run/step-000100  one of them

Every byte is checked.  The exit code is 1 where one is refused.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", metavar="DIR", help="a folder of checkpoints, or one checkpoint")


def main(args: argparse.Namespace) -> int:
    path = Path(args.folder)
    found = [path] if folder.step_of(path) >= 0 else folder.steps(path)
    if not found:
        raise CheckpointError(
            f"there must be checkpoints to list: {path} has none. Use the folder of train --save."
        )
    whole = True
    for path in found:
        try:
            print(f"{path.name}  whole    {about(folder.examine(path).content)}")
        except Damaged as e:
            whole = False
            print(f"{path.name}  refused  {e}")
    return 0 if whole else 1


def about(content: dict) -> str:
    """``tp=2 dp=2 zero=1 on 4 ranks, 12.5 MB, saved 2027-01-31T12:00:00+0100 by ...``"""
    layout = Layout(**content["layout"])
    ranks = "1 rank" if layout.ranks == 1 else f"{layout.ranks} ranks"
    size = sum(file["bytes"] for file in content["files"].values()) / 1e6
    return (
        f"{layout.name} on {ranks}, {size:,.1f} MB, saved {content['saved']} by tparallel "
        f"{content['tparallel']}"
    )
