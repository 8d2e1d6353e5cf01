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
arrays = [np.ones(1 << 18) for _ in range(32)]  # 2 MiB each: for these NumPy asks for nothing
del arrays
status, maps = open("/proc/self/status").read(), open("/proc/self/smaps").read()
huge = sum(map(int, re.findall(r"AnonHugePages:\s+(\d+)", maps)))
print(*(re.search(rf"{key}:\s+(\d+)", status)[1] for key in ("VmRSS", "VmPeak")), huge)
"""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")


def sizes(limit: int = 0) -> list[int]:
    """Resident, reserved, and resident in huge pages, in MiB, when 64 MiB of arrays are freed."""
    line = [sys.executable, "-c", PROGRAM, str(limit)]
    out = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    return [int(number) // 1024 for number in out.split()]


def test_what_is_freed_stays_and_lies_in_huge_pages():
    """The next layer's arrays find it there; nothing is resident that was never used."""
    if not HUGE.exists() or "[never]" in HUGE.read_text():
        pytest.skip("this system gives no huge pages")
    resident, _, huge = sizes()
    assert 60 <= huge <= resident < 300


FLAT = r"""
import re
import numpy as np
from mpi4py import MPI
from tparallel.config import Layout, ModelConfig, TrainConfig
from tparallel.launch.heap import keep_freed_memory
from tparallel.train import Trainer
keep_freed_memory()
model, train = ModelConfig(L=2, D=64, H=4, T=64, V=256), TrainConfig(global_batch=4)
trainer = Trainer(model, train, Layout(microbatches=2), MPI.COMM_SELF)
batch = np.random.default_rng(0).integers(0, 256, (2, 4, 64))
seen = []
for step in range(200):
    trainer.step(step, *batch)
    seen.append(int(re.search(r"VmRSS:\s+(\d+)", open("/proc/self/status").read())[1]))
print(seen[9], seen[-1])
"""


def test_two_hundred_steps_take_no_more_memory_than_ten():
    """Resident memory: arrays are made in every step, of memory that the last one left."""
    out = subprocess.run([sys.executable, "-c", FLAT], capture_output=True, text=True, check=True)
    early, late = map(int, out.stdout.split())
    assert late <= early * 1.01


def test_under_a_limit_nothing_is_reserved():
    """A limit of address space is there for the arrays, not for a reserve."""
    resident, reserved, _ = sizes(64 << 30)
    assert 64 <= resident <= reserved < 2048
