"""Start ranks, refuse to run as N independent copies, and end a job as one."""

from .failure import at, defer_mpi, guard_script, guarded, refused
from .guard import env_rank, refuse_singletons, started_copies
from .mpi import Mpi, installed
from .start import Job, command, die_with_parent, limit_threads, processes, run_ranks
from .stop import stopping

__all__ = [
    "Job",
    "Mpi",
    "at",
    "command",
    "defer_mpi",
    "die_with_parent",
    "env_rank",
    "guard_script",
    "guarded",
    "installed",
    "limit_threads",
    "processes",
    "refuse_singletons",
    "refused",
    "run_ranks",
    "started_copies",
    "stopping",
]
