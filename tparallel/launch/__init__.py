"""Start ranks, refuse to run as N independent copies, and end a job as one."""

from .guard import env_rank
from .installed import Mpi, installed
from .start import Job, command, die_with_parent, limit_threads, run_ranks

__all__ = [
    "Job",
    "Mpi",
    "command",
    "die_with_parent",
    "env_rank",
    "installed",
    "limit_threads",
    "run_ranks",
]
