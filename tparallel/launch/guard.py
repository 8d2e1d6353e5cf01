"""Refuse to train N times the same thing: N copies, each of which believes it is alone.

That is what the wrong launcher gives, e.g. Open MPI's ``mpirun`` for a Python with MPICH, or
``srun`` without the ``--mpi`` that the library speaks.  It looks like a run, and is none.
"""

import os
from collections.abc import Mapping

from ..errors import LayoutError
from .mpi import Mpi

# (variable of the rank, variable of the count), the library's own launcher before Slurm.
OPENMPI = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")
HYDRA = ("PMI_RANK", "PMI_SIZE")  # MPICH, Intel MPI, and Slurm's --mpi=pmi2
SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")  # the second is set by srun, not by sbatch
LAUNCHERS = (OPENMPI, HYDRA, SLURM)

# What each library needs to find in the environment in order to see the other ranks.
SPEAKS = {
    "mpich": ("PMI_RANK", "PMI_FD", "PMI_PORT"),
    "intel": ("PMI_RANK", "PMI_FD", "PMI_PORT", "I_MPI_PMI_LIBRARY"),
    "openmpi": ("PMIX_RANK", "OMPI_COMM_WORLD_RANK"),
}
SRUN = {"mpich": "pmi2", "intel": "pmi2", "openmpi": "pmix"}


def started_copies(env: Mapping[str, str] = os.environ) -> int:
    """How many processes a launcher has started: 0 when none did, as for plain ``python``.

    1 where a launcher tells each process its rank alone (PMIx without Open MPI or Slurm).
    """
    sizes = [int(env[size]) for _, size in LAUNCHERS if env.get(size, "").isdigit()]
    return max(sizes, default=int("PMIX_RANK" in env))


def env_rank(env: Mapping[str, str] = os.environ) -> int:
    """This process's rank, before MPI is loaded; 0 when no launcher says."""
    names = [rank for rank, size in LAUNCHERS if size in env] + ["PMIX_RANK"]
    return next((int(env[name]) for name in names if env.get(name, "").isdigit()), 0)


def refuse_singletons(mpi: Mpi, size: int | None = None, env: Mapping = os.environ) -> None:
    """Raise LayoutError if these are N copies of a job of one rank.

    Called twice: before MPI is loaded, when only the environment is known, and after, with the
    ``size`` of COMM_WORLD.  A system's MPI may speak more than its name tells: only the second
    call judges it.
    """
    copies = started_copies(env)
    if copies <= 1 or (size or 0) > 1:
        return
    if size is None and (mpi.source == "system" or any(name in env for name in SPEAKS[mpi.name])):
        return
    raise LayoutError(
        f"the launcher and the MPI library must belong together; {_launcher(env)} started {copies} "
        f"processes of a Python with {mpi}, so each would train alone. Use {mpi.mpiexec} -n "
        f"{copies} ..., or tparallel's own --ranks {copies}; under Slurm: srun "
        f"--mpi={SRUN[mpi.name]} (srun --mpi=list shows what yours has)."
    )


def _launcher(env: Mapping[str, str]) -> str:
    if SLURM[1] in env:
        return "srun"
    return "Open MPI's mpirun" if OPENMPI[1] in env else "an MPICH or Intel MPI mpiexec"
