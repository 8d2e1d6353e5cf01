"""``python -m tparallel``: the command line, alone or under ``mpirun``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
