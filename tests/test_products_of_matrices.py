"""Matrix products by MKL are NumPy's, for any two matrices that there can be."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tparallel import mkl

needs_mkl = pytest.mark.skipif(not mkl.installed(), reason="needs the mkl extra")


def info(**env) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "tparallel", "info"]
    return subprocess.run(line, env={**os.environ, **env}, capture_output=True, text=True)


@needs_mkl
@pytest.mark.parametrize("dtype, bound", [("float32", 1e-6), ("float64", 1e-15), ("int64", 0)])
def test_mkl_multiplies_matrices_that_lie_in_any_way(dtype, bound):
    """Row by row, column by column, parts of wider ones, every second row, a vector, nothing."""
    product, rng = mkl.make_product(), np.random.default_rng(0)
    wide = rng.integers(-9, 9, (40, 60)).astype(dtype)
    for a in (wide, wide.T, wide[3:17, 5:30], wide[::2], wide[:, ::3], wide[:1], wide[:, :1]):
        inner = a.shape[1]
        other = rng.integers(-9, 9, (2 * inner, 30)).astype(dtype)
        for b in (other[:inner], other[::2], other[:inner, 4:11], other[inner:, :1]):
            want = a @ b
            place = np.full_like(want, 7)
            assert product(a, b, place) is place
            for found in (product(a, b), product(b.T, a.T).T, place):
                assert found.dtype == want.dtype
                assert np.abs(found - want).max() <= bound * np.abs(want).max()
    assert product(wide[:0], wide.T).shape == (0, 40)


@needs_mkl
def test_mkl_is_taken_where_it_is_installed_and_not_for_the_plain_text():
    for kernels in ("fast", "tuned", ""):
        assert "by MKL" in info(TPARALLEL_KERNELS=kernels).stdout
    assert "by NumPy" in info(TPARALLEL_KERNELS="plain").stdout
    assert "by NumPy" in info(TPARALLEL_KERNELS="fast", TPARALLEL_PRODUCTS="array").stdout


@pytest.mark.parametrize("wanted", ["bfloat16", "float8"])
def test_products_that_are_not_there_are_refused(wanted):
    """Rule, value, way out."""
    ended = info(TPARALLEL_PRODUCTS=wanted)
    assert ended.returncode == 2
    assert f"'{wanted}', the backend numpy. Unset it." in ended.stderr
