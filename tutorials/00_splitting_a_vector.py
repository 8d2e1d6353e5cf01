"""Splitting a vector: what it can mean that two GPUs add [1, 2] + [1, 2] together.

You will see the same four numbers added in three ways by two ranks, and for each way what every
rank stores, what it computes, and what it must send.  Each way is one of the methods of this
project in miniature.  At the end the sum of the elements, which no way gets for free.

    mpirun -n 2 .venv/bin/python -m mpi4py tutorials/00_splitting_a_vector.py        (1 second)
"""

# %% Two ranks, one axis
# A mesh gives every rank its place; an axis has the verbs (all_gather, all_reduce, ...) and a
# ledger that counts what each verb sends.  On two ranks the axis `tp` is simply both of them.

import numpy as np
from mpi4py import MPI

from tparallel.comm.mesh import Mesh
from tparallel.config import Layout
from tparallel.tell import everyone, once

comm = MPI.COMM_WORLD
n = comm.size
if n != 2:
    raise SystemExit(f"two elements need two ranks; this job has {n}. Use mpirun -n 2.")
mesh = Mesh(Layout(tp=n), comm)
axis, ledger = mesh.tp, mesh.ledger

a = np.array([1.0, 2.0])
b = np.array([1.0, 2.0])
expected = a + b  # what one process computes
mine = slice(axis.rank * len(a) // n, (axis.rank + 1) * len(a) // n)  # this rank's elements


def report(way: str, stored: int, added: int, result) -> None:
    once(comm, f"\n{way}")
    everyone(
        comm,
        f"stores {stored} numbers, makes {added} addition(s), "
        f"sends {ledger.wire('tp')} bytes, ends with {result}",
    )
    ledger.clear()


# %% Way 1: the data whole on every rank, the computation split
# "Each GPU adds one element."  Every rank stores both vectors, adds its own element, and knows
# only that element of the result: to have all of it, the pieces must be exchanged.

my_sum = a[mine] + b[mine]
whole = axis.all_gather(my_sum, what="pieces of the sum")

report("1. data whole, computation split", stored=a.size + b.size, added=my_sum.size, result=whole)
assert np.array_equal(whole, expected)

# %% Way 2: the data split, the computation split with it
# Each rank stores only its own elements.  An elementwise sum needs nothing else, so no byte
# moves, as long as the next step is content with a split result.  This is what tensor
# parallelism does with weights: it cuts the *weights* along with the computation, keeps the
# intermediate results cut, and pays once, at the end.

my_a, my_b = a[mine].copy(), b[mine].copy()
my_sum = my_a + my_b

report("2. data split, computation split", my_a.size + my_b.size, my_sum.size, result=my_sum)
assert np.array_equal(my_sum, expected[mine])

# %% Way 3: the data split, the computation whole
# Each rank stores only its own elements, but computes with the whole vectors: it gathers them
# just before it needs them and drops them right after.  This is ZeRO (stage 3): storage is cut,
# the computation of a layer is not.  It costs the most bytes here, and every rank makes every
# addition.  In training that is not wasted work: the ranks compute the same *layer* on different
# *data*.

whole_a = axis.all_gather(my_a, what="a")
whole_b = axis.all_gather(my_b, what="b")
whole = whole_a + whole_b
del whole_a, whole_b

report("3. data split, computation whole", my_a.size + my_b.size, whole.size, result=whole)
assert np.array_equal(whole, expected)

# %% When the elements meet: a dot product
# Adding vectors is kind to splitting: no element needs another.  A matrix product is not, since
# its inner dim is summed.  With that dim cut, each rank holds a *partial* sum, and an all-reduce
# finishes it.  Where tensor parallelism communicates, it is for this reason.

partial = float(my_a @ my_b)
finished = float(axis.all_reduce(np.array([partial]), what="partial dot products")[0])

once(comm, "\n4. a · b with the inner dim cut")
everyone(comm, f"partial sum {partial}, sends {ledger.wire('tp')} bytes, ends with {finished}")
assert finished == a @ b

# %% What to remember
# The three ways differ in three separate questions: what is stored, what is computed, what is
# sent.  "Parallel" alone answers none of them.

once(
    comm,
    "",
    "                              stored   computed   sent to get the whole result",
    "1. the note's tensor parallel  whole    split      pieces of the result",
    "2. Megatron's tensor parallel  split    split      nothing until an inner dim is summed",
    "3. ZeRO                        split    whole      the data, before it is used",
    f"\nAll three equal one process: {expected}",
)
