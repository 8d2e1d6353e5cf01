"""Small jobs that end in different ways: ``jobs.py NAME``, run by ``tests/test_launch*.py``."""

import os
import signal
import socket
import sys
import threading
import time

from tparallel import launch
from tparallel.errors import LayoutError
from tparallel.launch import memory

RULE = "tp must divide the number of heads: H = 6, tp = 4. Use tp 1, 2, 3 or 6."


def say(line: str) -> None:
    """In one piece: print() writes the end of the line by itself."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def one_rank_raises(comm):
    if comm.rank == 1:
        say(f"raised at {time.time()}")
        raise ValueError("the shape is wrong")
    comm.Barrier()


def tells_its_memory(comm):
    say(f"uses {' '.join(memory.segments())}")
    one_rank_raises(comm)


def all_ranks_raise(comm):
    raise ValueError("the shape is wrong")


def a_thread_raises(comm):
    if comm.rank == 1:
        threading.Thread(target=lambda: [][0]).start()
    comm.recv(source=(comm.rank + 1) % comm.size)


def a_rank_is_killed(comm):
    if comm.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    comm.Barrier()


def all_ranks_refuse(comm):
    raise LayoutError(RULE)


def one_rank_raises_while_others_reduce(comm):
    if comm.rank == 1:
        raise ValueError("the shape is wrong")
    comm.allreduce(1.0)


def one_rank_refuses(comm):
    if comm.rank == 1:
        raise LayoutError(RULE)
    comm.Barrier()


def one_rank_exits(comm):
    if comm.rank == 1:
        sys.exit("no more")
    comm.Barrier()


def rank_0_returns_3(comm):
    time.sleep(0.2 * comm.rank)
    return 3 if comm.rank == 0 else 0


def ready():
    say(f"ready {' '.join(memory.segments())}")


def computes(comm):
    ready()
    while True:
        time.sleep(0.01)


def waits_inside_mpi(comm):
    ready()
    comm.recv(source=(comm.rank + 1) % comm.size)


def stops_after_a_step(comm):
    with launch.stopping() as asked:
        for step in range(10**6):
            launch.at(f"step {step}")
            if step == 0:
                ready()
            time.sleep(3 if comm.rank == 2 else 0)  # the others wait inside MPI meanwhile
            if comm.allreduce(asked()):
                say(f"stopped after step {step}")
                return 0
    return 1


def main() -> int | None:
    from mpi4py import MPI

    launch.at("step 120")
    MPI.COMM_WORLD.Barrier()
    return globals()[sys.argv[1]](MPI.COMM_WORLD)


if __name__ == "__main__":
    launch.defer_mpi()  # as the command line does
    if "two-hosts" in sys.argv:
        socket.gethostname = lambda: f"node{launch.env_rank() % 2}"
    sys.exit(launch.guarded(main))
