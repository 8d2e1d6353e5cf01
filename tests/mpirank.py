"""A rank's side of ``mpitest.py``: a script that runs the tests that pytest names in its pipe."""

import ast
import contextlib
import faulthandler
import importlib.util
import os
import resource
import signal
import sys
import threading
import time
import traceback
import tracemalloc
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from mpijob import FOLDER, LAST_RESORT, START

from tparallel import launch


def main() -> None:
    """Run test after test, until pytest closes the pipe or one does not pass."""
    folder, rank = Path(os.environ[FOLDER]), launch.env_rank()
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)  # a C handler: it works inside MPI calls too
    launch.die_with_parent(signal.SIGKILL)
    faulthandler.dump_traceback_later(START + LAST_RESORT, exit=True)
    (folder / f"{rank}.pid").write_text(str(os.getpid()))
    with open(folder / f"{rank}.work") as work:
        for number in work:
            test = folder / number.strip()
            _write_to(test / f"{rank}.log")
            if not run(test, rank):
                break
            faulthandler.cancel_dump_traceback_later()


def _write_to(log: Path) -> None:
    """All that this process writes from now on, stacks too, goes there."""
    sys.stdout.flush()
    sys.stderr.flush()
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def run(folder: Path, rank: int) -> bool:
    """Run one test and say how it went.  True if it passed and another may follow."""
    file, name, arguments, timeout, fresh = ast.literal_eval((folder / "task").read_text())
    faulthandler.dump_traceback_later(START + timeout + LAST_RESORT, exit=True)
    try:
        with contextlib.nullcontext() if fresh else unchanged():
            test = getattr(load(file), name)
            ours, comm = communicators()
            (folder / f"{rank}.entered").touch()
            test(comm=comm, **decode(arguments))
            ours.Barrier()  # a rank that is left behind fails here, by name
            no_message_is_left(comm)
            comm.Free()
            launch.at("")  # a test's trainers have said where they are
    except pytest.skip.Exception as e:
        (folder / f"{rank}.skipped").write_text(str(e))
        return False
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        (folder / f"{rank}.failed").touch()
        time.sleep(LAST_RESORT)
        os._exit(1)
    (folder / f"{rank}.ok").touch()
    return True


def communicators():
    """One that no test sees, and a new one for this test."""
    from mpi4py import MPI

    return _private(), MPI.COMM_WORLD.Dup()


@cache
def _private():
    from mpi4py import MPI

    return MPI.COMM_WORLD.Dup()


def no_message_is_left(comm) -> None:
    """What was sent and not received would wait for the next test."""
    from mpi4py import MPI

    for each in (comm, MPI.COMM_WORLD):
        status = MPI.Status()
        left = [each.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG, status) for _ in range(3)]
        assert not any(left), (
            f"the test leaves a message from rank {status.source} with tag {status.tag}"
        )


@contextlib.contextmanager
def unchanged() -> Iterator[None]:
    """A test leaves the process as it was, for the tests after it; another needs a fresh job."""
    before = state()
    yield
    after = state()
    changed = [name for name, value in before.items() if after.get(name) is not value]
    changed = [name for name in changed if "." in name or after[name] != before[name]]
    assert not changed, (
        f"the test has changed {', '.join(changed)}; restore it, or use @mpi(..., fresh=True)"
    )


def state() -> dict[str, object]:
    """What a test could change by mistake, by name; of the package, every function and class."""
    limits = {name: getattr(resource, name) for name in dir(resource) if name[:7] == "RLIMIT_"}
    found: dict[str, object] = {
        "the environment": dict(os.environ),
        "the folder": os.getcwd(),
        "the threads": {*threading.enumerate()},
        "the limits": {name: resource.getrlimit(number) for name, number in limits.items()},
        "the handlers": [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)],
        "the hooks": (sys.excepthook, threading.excepthook, sys.gettrace(), sys.getprofile()),
        "tracemalloc": tracemalloc.is_tracing(),
    }
    for name, module in [*sys.modules.items()]:
        if name.partition(".")[0] == "tparallel":
            for key, value in [*vars(module).items()]:
                found[f"{name}.{key}"] = value
                if isinstance(value, type) and value.__module__ == name:
                    found |= {f"{name}.{key}.{k}": v for k, v in vars(value).items()}
    return found


@cache
def load(file: str):
    """The test module, its asserts rewritten by pytest so that they show their values."""
    from _pytest.assertion.rewrite import rewrite_asserts

    sys.path.insert(0, os.path.dirname(file))
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    source = Path(file).read_bytes()
    tree = ast.parse(source, file)
    rewrite_asserts(tree, source, file)
    exec(compile(tree, file, "exec"), module.__dict__)
    return module


def decode(arguments: tuple[dict, dict]) -> dict:
    literals, paths = arguments
    return {**literals, **{name: Path(value) for name, value in paths.items()}}


if __name__ == "__main__":
    main()
