"""Each cut layer beside its serial twin: full -> shard -> run -> unshard -> equal."""

import numpy as np
from cut_layers import CUT, KINDS, MODEL, SERIAL, B, inputs, run, run_whole
from groups import groups
from mpitest import mpi

from tparallel.comm.axis import Axis
from tparallel.comm.ledger import Ledger
from tparallel.compare.equality import relative_error, worst_error
from tparallel.config import replace
from tparallel.serial.loss import cross_entropy_backward, cross_entropy_forward
from tparallel.tensor_parallel import loss as cut_loss
from tparallel.tensor_parallel.model import loss_functions
from tparallel.tensor_parallel.split import is_split, part, shard, unshard

VOCABULARIES = (23, 24, 4)  # prime, divisible by 2, 3 and 4, and one row for each of four ranks


def each_axis(comm, *sizes):
    for group in groups(comm, *sizes):
        yield Axis("tp", group.Dup(), Ledger()), group


def columns(logits, tp):
    """This rank's part of the vocabulary, as an array of its own."""
    return logits[..., part(logits.shape[-1], tp.rank, tp.size)].copy()


def whole_of(parts, like):
    return unshard(parts, {name: a.shape for name, a in like.items()})


@mpi(4)
def test_each_cut_layer_equals_its_serial_twin(comm):
    """Output, input gradient and gathered parameter gradients at tp = 2, 3, 4, V even or not."""
    for tp, group in each_axis(comm, 2, 3, 4):
        for V in VOCABULARIES:
            for kind in KINDS:
                x, p, dy = inputs(kind, replace(MODEL, V=V))
                y, dx, grads = run(SERIAL, kind, x, p, dy)
                mine = shard(p, tp.rank, tp.size)
                dy = columns(dy, tp) if kind == "head" else dy
                our_y, our_dx, our_grads = run(CUT(tp, V), kind, x, mine, dy)
                if kind == "head":
                    our_y = np.concatenate(group.allgather(our_y), -1)
                where = (kind, V, tp.size)
                assert relative_error(our_y, y) <= 1e-12, where
                assert dx is our_dx is None or relative_error(our_dx, dx) <= 1e-12, where
                parts = group.allgather(our_grads)
                error, name = worst_error({kind: whole_of(parts, grads)}, {kind: grads})
                assert error <= 1e-12, (*where, name)


@mpi(4)
def test_what_every_tp_rank_holds_gets_the_same_gradient_on_each_to_the_last_bit(comm):
    """Norms, row biases and positions stay equal without a message of their own."""
    for tp, group in each_axis(comm, 2, 3, 4):
        for kind in KINDS:
            x, p, dy = inputs(kind, MODEL)
            dy = columns(dy, tp) if kind == "head" else dy
            y, dx, grads = run(CUT(tp, MODEL.V), kind, x, shard(p, tp.rank, tp.size), dy)
            held = {name: g for name, g in grads.items() if not is_split(name)}
            held |= {"dx": dx} if dx is not None else {}
            held |= {"y": y} if kind != "head" else {}
            for name, a in held.items():
                assert len(set(group.allgather(a.tobytes()))) == 1, (kind, name, tp.size)


@mpi(4)
def test_backward_in_one_piece_gives_the_bits_of_its_two_halves(comm):
    """Hiding a sum behind the weight gradients changes when it is awaited, and nothing else."""
    for tp, _ in each_axis(comm, 2, 4):
        for kind in KINDS:
            x, p, dy = inputs(kind, MODEL)
            dy, mine = columns(dy, tp) if kind == "head" else dy, shard(p, tp.rank, tp.size)
            apart, whole = (f(CUT(tp, MODEL.V), kind, x, mine, dy) for f in (run, run_whole))
            assert apart[1] is whole[1] is None or np.array_equal(apart[1], whole[1]), kind
            assert apart[2].keys() == whole[2].keys()
            assert all(np.array_equal(g, whole[2][name]) for name, g in apart[2].items()), kind


@mpi(4)
def test_the_cut_cross_entropy_equals_the_serial_one(comm):
    """Loss on every rank, and every column of dlogits; every id is a target, the last one too."""
    for tp, group in each_axis(comm, 2, 3, 4):
        for V in VOCABULARIES:
            rng = np.random.default_rng(V)
            logits = 30 * rng.normal(size=(3, V, V))
            targets = np.stack([rng.permutation(V) for _ in range(3)])
            loss, cache = cross_entropy_forward(logits, targets, 1000)
            forward, backward = loss_functions(tp, V)
            our_loss, our_cache = forward(columns(logits, tp), targets, 1000)
            assert relative_error(our_loss, loss) <= 1e-12
            assert len(set(group.allgather(float(our_loss)))) == 1
            dlogits = np.concatenate(group.allgather(backward(our_cache)), -1)
            assert relative_error(dlogits, cross_entropy_backward(cache)) <= 1e-12


@mpi(1)
def test_on_one_rank_the_cut_files_give_serials_bits_and_move_nothing(comm):
    """float32 and float64; the cut functions themselves, not the shortcut that skips them."""
    for dtype in ("float32", "float64"):
        tp = Axis("tp", comm.Dup(), Ledger())
        for kind in KINDS:
            x, p, dy = inputs(kind, MODEL, dtype)
            y, dx, grads = run(SERIAL, kind, x, p, dy)
            our_y, our_dx, our_grads = run(CUT(tp, MODEL.V), kind, x, p, dy)
            assert our_y.dtype == dtype and our_y.tobytes() == y.tobytes(), (kind, dtype)
            assert dx is our_dx is None or our_dx.tobytes() == dx.tobytes(), (kind, dtype)
            assert list(our_grads) == list(grads)
            for name, g in grads.items():
                assert our_grads[name].dtype == dtype, (kind, name)
                assert our_grads[name].tobytes() == g.tobytes(), (kind, name, dtype)
        rng = np.random.default_rng(1)
        logits, targets = rng.normal(size=(B, 7, 23)).astype(dtype), rng.integers(0, 23, (B, 7))
        for count in (21, 100, 1021, 3000):
            loss, cache = cross_entropy_forward(logits, targets, count)
            our_loss, ours = cut_loss.cross_entropy_forward(logits, targets, count, tp, 23)
            dlogits, ours = cross_entropy_backward(cache), cut_loss.cross_entropy_backward(ours)
            assert our_loss == loss and our_loss.dtype == dtype
            assert ours.dtype == dtype and ours.tobytes() == dlogits.tobytes(), (dtype, count)
        assert tp.ledger.totals == {}


@mpi(4)
def test_a_row_split_bias_is_added_once(comm):
    """All weights zero: the output is the bias itself, to the last bit, not tp times it."""
    for tp, _ in each_axis(comm, 2, 3, 4):
        for kind, name in (("attention", "attn.b_out"), ("mlp", "mlp.b_out")):
            x, p, dy = inputs(kind, MODEL)
            p = {n: a if n == name else np.zeros_like(a) for n, a in p.items()}
            y, _, _ = run(CUT(tp, MODEL.V), kind, x, shard(p, tp.rank, tp.size), dy)
            assert np.array_equal(y, np.broadcast_to(p[name], y.shape)), (kind, tp.size)
