"""What every test run needs: one BLAS thread, checked collectives, and what is installed."""

import importlib.util
import os

import pytest
from mpitest import ranks_end_well  # noqa: F401 (a fixture)

from tparallel import launch

os.environ.setdefault("TPARALLEL_CHECK", "1")
# The proofs are about the plain text; tests/test_kernels.py holds the others equal to it.
os.environ.setdefault("TPARALLEL_KERNELS", "plain")
launch.limit_threads(os.environ)


def pytest_report_header() -> str:
    return f"mpi: {launch.installed()}; cores: {len(os.sched_getaffinity(0))}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A marker that names something optional skips its tests where that is missing."""
    missing = {}
    if not _has_gpu():
        missing["gpu"] = "needs CuPy and a GPU"
    if importlib.util.find_spec("torch") is None:
        missing["oracle"] = "needs the oracle extra: pip install -e '.[oracle]'"
    for item in items:
        for marker, reason in missing.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def _has_gpu() -> bool:
    if importlib.util.find_spec("cupy") is None:
        return False
    import cupy

    try:
        return cupy.cuda.is_available()
    except cupy.cuda.runtime.CUDARuntimeError:
        return False
