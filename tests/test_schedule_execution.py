"""Every schedule run for real: serial's loss and gradients, and no more held than was planned."""

import gc
import weakref

import numpy as np
import pytest
from mpitest import mpi

from tparallel.compare.equality import worst_error
from tparallel.config import Layout, ModelConfig, TrainConfig, check
from tparallel.errors import LayoutError, ScheduleError
from tparallel.pipeline_parallel.schedule import in_flight
from tparallel.pipeline_parallel.schedules import SCHEDULES
from tparallel.pipeline_parallel.stage import Chunk, by_cost, cut_layers, layer_cost
from tparallel.serial.model import LAYERS, add_grads
from tparallel.serial.train import initial_params, loss_and_grads, train_step, zeros_like
from tparallel.train import Trainer
from tparallel.zero.norm import totals

SIZE = {"D": 12, "H": 4, "T": 6, "V": 13}


def batch(model, G, seed=0):
    rng = np.random.default_rng([5, seed])
    return tuple(rng.integers(0, model.V, (G, model.T)) for _ in range(2))


def configs(layout, L, dtype, tied=False, rows=2, **more):
    """The smallest model that fits, and M micro-batches of ``rows`` sequences for each dp rank."""
    G = rows * layout.dp * layout.microbatches
    train = TrainConfig(global_batch=G, dtype=dtype, init="random", optimizer="sgd", **more)
    return ModelConfig(**SIZE, L=L, tied=tied), train


def compared(comm, layout, L, dtype, tied=False):
    """(error of the loss, worst gradient's error, is every bit the same) against serial."""
    model, train = configs(layout, L, dtype, tied)
    tokens, targets = batch(model, train.global_batch)
    trainer = Trainer(model, train, layout, comm)
    loss, _ = totals(trainer.store, trainer.forward_backward(tokens, targets))
    grads = trainer.grads()
    trainer.close()
    if grads is None:
        return None
    expected_loss, expected = loss_and_grads(
        initial_params(model, train), tokens, targets, layout.dp * layout.microbatches
    )
    same = all((grads[u][n] == expected[u][n]).all() for u in expected for n in expected[u])
    return abs(loss - expected_loss), worst_error(grads, expected)[0], same


@mpi(2, 4, timeout=60)
@pytest.mark.parametrize("M", [1, 5])
def test_every_schedule_gives_serial_s_gradients_bit_for_bit(comm, M):
    """float32; the order of a chunk's weight gradients is serial's order of micro-batches, so every
    bit is the same.  Fewer micro-batches than stages, and layers that the chunks do not divide."""
    for name in SCHEDULES:
        layout = Layout(pp=comm.size, schedule=name, microbatches=M)
        result = compared(comm, layout, 2 * comm.size + 1, "float32")
        assert result is None or (result[0] <= 1e-6 and result[2]), (name, result)


@mpi(2, 3, timeout=60)
def test_with_tied_embeddings_every_schedule_agrees(comm):
    """The first and the last chunk add to one table, on two stages or, folded, on one: another
    order of additions, 1e-12 in float64."""
    for name in SCHEDULES:
        layout = Layout(pp=comm.size, schedule=name, microbatches=4)
        result = compared(comm, layout, 2 * comm.size, "float64", tied=True)
        assert result is None or max(result[:2]) <= 1e-12, (name, result)


@mpi(4, timeout=90)
@pytest.mark.parametrize("name", ["interleaved", "zb-h1", "zb-v", "dualpipe-v"])
def test_schedules_work_with_tp_inside_and_every_zero_stage_outside(comm, name):
    """Two stages of two ranks, each with a model cut over tp, or with any ZeRO stage over dp."""
    layouts = [Layout(tp=2, pp=2, schedule=name, microbatches=3)]
    layouts += [Layout(pp=2, dp=2, zero=z, schedule=name, microbatches=2) for z in range(4)]
    for layout in layouts:
        result = compared(comm, layout, 5, "float64", tied=True)
        assert result is None or max(result[:2]) <= 1e-12, (layout.name, result)


@mpi(2)
def test_clipping_is_exact_under_every_schedule(comm):
    """The norm is of all gradients, of all stages, before any is used: three clipped steps."""
    for name in SCHEDULES:
        layout = Layout(pp=comm.size, schedule=name, microbatches=3)
        model, train = configs(layout, 4, "float64", clip=0.01, lr=0.5, warmup=0)
        trainer = Trainer(model, train, layout, comm)
        params = initial_params(model, train)
        for step in range(3):
            rows = batch(model, train.global_batch, step)
            loss, norm = trainer.step(step, *rows)
            expected = train_step(params, (), *rows, step, train, layout.microbatches)
            assert norm > train.clip
            assert [loss, norm] == pytest.approx(expected, rel=1e-12)
        mine = trainer.params()
        assert mine is None or worst_error(mine, params)[0] <= 1e-12, name
        trainer.close()


@mpi(2, 4, timeout=60)
def test_a_stage_holds_what_the_schedule_says_after_every_action(comm):
    """Activations in flight, counted in the caches that are alive; at the end nothing is left."""
    for name in SCHEDULES:
        layout = Layout(pp=comm.size, schedule=name, microbatches=6)
        model, train = configs(layout, 2 * comm.size, "float32")
        trainer, held = Trainer(model, train, layout, comm), []
        trainer.forward_backward(
            *batch(model, train.global_batch), after=lambda e, held=held: held.append(e.in_flight)
        )
        order = trainer.schedule.orders[trainer.mesh.pp.rank]
        assert held == in_flight(order).tolist(), name
        e = trainer.executor
        assert not (e.caches or e.wcaches or e.x or e.dy or e.posted), name
        trainer.close()


@mpi(2)
def test_a_sent_array_is_dropped_when_its_message_is_gone(comm):
    """GPipe sends M activations one after the other: they do not gather until the step is over."""
    layout = Layout(pp=2, schedule="gpipe", microbatches=24)
    model, train = configs(layout, 2, "float32", rows=1)
    trainer, alive, most = Trainer(model, train, layout, comm), [], [0]
    send = trainer.mesh.pp.send

    def sending(x, **how):
        alive.append(weakref.ref(x))
        return send(x, **how)

    def look(executor):
        most[0] = max(most[0], len(executor.posted))

    trainer.mesh.pp.send = sending
    trainer.forward_backward(*batch(model, train.global_batch), after=look)
    gc.collect()
    assert len(alive) == 24 and not any(array() is not None for array in alive)
    assert most[0] < 24
    trainer.close()


def test_a_joined_backward_is_its_two_halves_bit_for_bit():
    """The same chunk, backward in one and in two: dx and every gradient are the same bits."""

    class Plain:
        """Holds parameters and adds gradients, as serial does."""

        def __init__(self, params):
            self.params, self.grads = params, zeros_like(params)

        def gathered(self, layers):
            return ((layer, self.params[layer]) for layer in layers)

        def empty_places(self, layer):
            return ()

        def add_grads(self, layer, new):
            add_grads(self.grads, layer, new)

    model, train = configs(Layout(microbatches=2), 3, "float32")
    params, (tokens, _) = initial_params(model, train), batch(model, train.global_batch)
    results = []
    for joined in (True, False):
        chunk = Chunk(["block.0", "block.1", "block.2", "head"], LAYERS, Plain(params))
        x = np.random.default_rng(1).normal(size=(*tokens.shape, model.D)).astype("float32")
        y, caches = chunk.forward(x)
        dy = np.random.default_rng(2).normal(size=y.shape).astype("float32")
        if joined:
            dx = chunk.backward(dy, caches)
        else:
            dx, wcaches = chunk.backward_input(dy, caches)
            chunk.backward_weight(wcaches)
        results.append((dx, chunk.store.grads))
    (dx, grads), (dx2, grads2) = results
    assert (dx == dx2).all() and any(g.any() for g in grads["block.1"].values())
    assert all((grads[u][n] == grads2[u][n]).all() for u in grads for n in grads[u])


@mpi(2)
def test_a_schedule_of_your_own_runs(comm, tmp_path):
    """From a text file: half of the weight gradients late, the pipeline upside down, so that the
    embedding lives on the last rank and the head on the first; tied all the same."""
    rows = "1F0 1B0 1F1 1BW1 1F2 1B2 1W0 1W2\n0F0 0F1 0F2 0BW0 0BW1 0BW2\n"
    if comm.rank == 0:
        (tmp_path / "mine.txt").write_text("# my own\n" + rows)
    comm.Barrier()
    layout = Layout(pp=2, schedule=str(tmp_path / "mine.txt"), microbatches=3)
    for tied in (False, True):
        result = compared(comm, layout, 4, "float64", tied)
        assert result is None or max(result[:2]) <= 1e-12, result


@mpi(2)
def test_a_schedule_that_cannot_run_is_refused_on_every_rank(comm, tmp_path):
    """Before any message: no rank waits for another, and none starts."""
    if comm.rank == 0:
        (tmp_path / "bad.txt").write_text("0F0 0BW0 0F1 0BW1\n1F1 1BW1 1F0 1BW0\n")
    comm.Barrier()
    layout = Layout(pp=2, schedule=str(tmp_path / "bad.txt"), microbatches=2)
    with pytest.raises(ScheduleError, match="wait in a circle"):
        Trainer(*configs(layout, 4, "float32"), layout, comm)


def test_more_chunks_than_layers_are_refused():
    """Stages, and chunks of stages."""
    for layout in (Layout(pp=5), Layout(pp=2, schedule="interleaved", chunks=3)):
        with pytest.raises(LayoutError, match="needs a block: L = 4"):
            check(ModelConfig(L=4), TrainConfig(), layout)
    with pytest.raises(LayoutError, match="needs a block: L = 4"):
        cut_layers(ModelConfig(L=4), 5)


@pytest.mark.parametrize("V", [64, 5_000, 50_000])
@pytest.mark.parametrize("L, chunks", [(4, 2), (7, 3), (12, 4), (9, 9)])
def test_a_cut_by_cost_has_the_fastest_slowest_chunk(L, chunks, V):
    """Every way to cut is tried: none has a cheaper most expensive chunk.  Each has a block."""
    model = ModelConfig(L=L, D=64, T=64, V=V)
    cost = layer_cost(model)

    def slowest(counts):
        return max(
            [*(n * cost["block"] for n in counts[:-1]), counts[-1] * cost["block"] + cost["head"]]
        )

    def every_way(n, parts):
        if parts == 1:
            yield [n]
            return
        for first in range(1, n - parts + 2):
            for rest in every_way(n - first, parts - 1):
                yield [first, *rest]

    ours = by_cost(model, chunks)
    assert sum(ours) == L and min(ours) >= 1
    assert slowest(ours) == min(slowest(counts) for counts in every_way(L, chunks))


def test_the_head_s_product_moves_the_cut():
    """V = 50,257 at D = 64 is worth many blocks: the last stage gets few; by count it gets half."""
    model = ModelConfig(L=8, D=64, T=64, V=50_257)
    assert [len(chunk) for chunk in cut_layers(model, 2, "even")] == [5, 5]  # 4 blocks, and an end
    assert [len(chunk) for chunk in cut_layers(model, 2, "cost")] == [8, 2]
    small = ModelConfig(L=8, D=64, T=64, V=64)
    assert cut_layers(small, 3, "even") == cut_layers(small, 3, "cost")


@mpi(2)
def test_a_cut_by_cost_gives_the_same_gradients(comm):
    """Which stage holds which block changes nothing but the time."""
    layout = Layout(pp=2, schedule="1f1b", microbatches=3, cut="cost")
    result = compared(comm, layout, 5, "float32")
    assert result is None or result[2]
