#!/usr/bin/env python3
"""Writes tests/golden/*.npz from the PyTorch twin in tests/oracle/, in float64, and
tests/golden/published/*.npz from small models of Hugging Face's transformers.

    pip install torch transformers && python scripts/make_golden.py

The tests compare ``tparallel.serial`` with these files, and so need no PyTorch.  The files change
only when a case in tests/oracle/cases.py or the twin does; a test marked ``oracle`` runs the twin
again and says whether they are still what it answers.
"""

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from oracle import published  # noqa: E402
from oracle.answers import answers  # noqa: E402
from oracle.cases import CLIP, GOLDEN  # noqa: E402


def main() -> None:
    twins()
    for name in published.CASES:
        path = ROOT / "tests" / "golden" / "published" / f"{name}.npz"
        path.parent.mkdir(exist_ok=True)
        np.savez_compressed(path, **published.golden(name))
        print(f"{path.relative_to(ROOT)}  {path.stat().st_size:,} bytes")


def twins() -> None:
    for name, case in GOLDEN.items():
        path = ROOT / "tests" / "golden" / f"{name}.npz"
        found = answers(case)
        np.savez_compressed(path, **found)
        print(f"{path.relative_to(ROOT)}  {path.stat().st_size:,} bytes")
        for optimizer in ("sgd", "adamw"):
            norms = found[f"{optimizer}.norm"]
            print(f"  {optimizer}: {(norms > CLIP).sum()} of {len(norms)} steps are clipped")


if __name__ == "__main__":
    main()
