"""Freed arrays stay with the process, in huge pages, unless its memory is limited."""

import subprocess
import sys
from pathlib import Path

import pytest

HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PROGRAM = r"""
import re, resource, sys
limit = int(sys.argv[1])
if limit:
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
from tparallel.launch.heap import keep_freed_memory
keep_freed_memory()
import numpy as np
for _ in range(3):
    np.ones(1 << 23).sum()
status, maps = open("/proc/self/status").read(), open("/proc/self/smaps").read()
heap = maps[maps.index("[heap]"):]  # which the mark has cut into several
huge = sum(map(int, re.findall(r"AnonHugePages:\s+(\d+)", heap)))
print(re.search(r"VmRSS:\s+(\d+)", status)[1], huge)
"""


def resident_and_huge(limit: int = 0) -> tuple[int, int]:
    """Both in MiB, after arrays of 64 MiB were made and freed."""
    line = [sys.executable, "-c", PROGRAM, str(limit)]
    out = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    resident, huge = (int(number) // 1024 for number in out.split())
    return resident, huge


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_what_is_freed_stays_and_lies_in_huge_pages():
    """The next layer's arrays find it there; nothing is held that was never used."""
    if not HUGE.exists() or "[never]" in HUGE.read_text():
        pytest.skip("this system gives no huge pages")
    resident, huge = resident_and_huge()
    assert 64 <= huge <= resident < 300


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_under_a_limit_nothing_is_reserved():
    """A limit of 4 GiB of address space holds for the arrays, not for a reserve."""
    resident, huge = resident_and_huge(4 << 30)
    assert resident >= 64
    assert huge == 0
