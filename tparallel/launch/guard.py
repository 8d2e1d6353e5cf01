"""Refuse to run as N independent copies of a job of one rank."""

import os


def env_rank() -> int:
    """This process's rank, from its launcher's variables, before MPI is loaded; 0 if alone."""
    for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID"):
        if name in os.environ:
            return int(os.environ[name])
    return 0
