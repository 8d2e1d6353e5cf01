"""What a run on this machine would use: versions, MPI, backend, cores."""

import argparse
import importlib.metadata
import os
import platform

from .. import __version__, backend, kernels, launch, products

PACKAGES = (
    *("numpy", "mpi4py", "numba", "cupy-cuda12x", "cupy-cuda13x", "nvidia-cudnn-frontend"),
    *("matplotlib", "torch"),
)
EPILOG = """examples:
  tparallel info                          this environment
  tparallel info --backend cupy           with CuPy arrays, if a GPU answers
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter


def main(args: argparse.Namespace) -> int:
    for name, value in facts().items():
        print(f"{name:12} {value}")
    return 0


def facts() -> dict[str, str]:
    """Name and value of everything that decides how a run here goes."""
    from mpi4py import MPI

    from ..comm.transport import TRANSPORTS, chosen, cores, cuda_aware

    aware, why = cuda_aware()
    transport, because = chosen()
    library = " ".join(MPI.Get_library_version().split("\n")[0].rstrip("\0").split())
    return {
        "tparallel": __version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        "packages": ", ".join(filter(None, map(_version, PACKAGES))),
        "mpi": f"{launch.installed()}: {library}",
        "mpiexec": str(launch.installed().mpiexec),
        "backend": backend.name,
        "device": backend.device(),
        "cuda-aware": f"{'yes' if aware else 'no'}: {why}",
        "transport": f"{transport}: {TRANSPORTS[transport]} ({because})",
        "kernels": f"{kernels.name} (TPARALLEL_KERNELS=plain, tuned or fast chooses)",
        "attention": _attention(),
        "products": _products(),
        "cores": f"{cores()} that this process may use",
        "threads": f"{os.environ.get('OMP_NUM_THREADS', '1')} for BLAS in each rank",
    }


def _products() -> str:
    """What matrix products of float32 are computed in."""
    if backend.name == "numpy":
        by = "MKL" if products.name == "mkl" else "NumPy"
        return f"as the arrays, by {by} (TPARALLEL_PRODUCTS=array or mkl chooses)"
    tf32 = "TF32" if os.environ.get("CUPY_TF32") == "1" else "float32"
    linear = "bfloat16" if products.name == "bfloat16" else tf32
    return f"float32 in linear layers as {linear}, in attention as {tf32} (see README)"


def _attention() -> str:
    """Which kernels compute it."""
    if not kernels.HALVES:
        return f"by the {kernels.name} kernels"
    by = "by cuDNN of bfloat16, else in blocks" if kernels.ATTENTION == "cudnn" else "in blocks"
    return f"{by} (TPARALLEL_ATTENTION=cudnn or blocks chooses)"


def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return ""
