"""Pipelines that run: the same bits as serial, from any schedule, with any number of stages."""

import numpy as np
import pytest
from groups import groups
from layout_cases import MODEL, TRAIN, batch, same_bits, serial
from mpitest import mpi

from tparallel.comm.mesh import Mesh
from tparallel.comm.transport import Direct
from tparallel.compare.equality import worst_error
from tparallel.config import Layout, ModelConfig, TrainConfig, replace
from tparallel.pipeline_parallel.execute import Executor
from tparallel.pipeline_parallel.program import SENDS, programs
from tparallel.pipeline_parallel.schedule import B, F, W, peak_in_flight, schedule_of
from tparallel.pipeline_parallel.stage import Chunk, cut_layers, stored_units
from tparallel.serial.model import LAYERS
from tparallel.serial.parameters import initial, layer_names
from tparallel.serial.train import initial_params, loss_and_grads
from tparallel.tensor_parallel.model import loss_functions
from tparallel.train import Trainer
from tparallel.zero.store import Store

UNEVEN = replace(MODEL, L=5)  # neither 2, 3 nor 4 stages divide five layers


def test_layers_are_dealt_out_as_evenly_as_can_be():
    """Every layer once and in order; block counts differ by one at most; no stage is empty."""
    for L in range(1, 9):
        for S in range(1, L + 1):
            parts = cut_layers(replace(MODEL, L=L), S)
            assert [layer for part in parts for layer in part] == layer_names(L)
            blocks = [sum(layer.startswith("block") for layer in part) for part in parts]
            assert max(blocks) - min(blocks) <= 1 and min(blocks) >= 1


def test_a_tied_table_is_stored_on_the_first_and_the_last_stage_only():
    """``vocab`` stands where embed and head are; untied there is no such unit."""
    for S in (2, 3):
        parts = cut_layers(replace(MODEL, L=3), S)
        holders = ["vocab" in stored_units(part, tied=True) for part in parts]
        assert holders == [s in (0, S - 1) for s in range(S)]
        assert not any("vocab" in stored_units(part, tied=False) for part in parts)
    assert stored_units(layer_names(3), tied=True).count("vocab") == 1


@mpi(4)
def test_a_pipeline_has_serials_loss_and_gradients_to_the_last_bit(comm):
    """Untied, float64, S = 2, 3, 4 of five uneven layers, M from 1 (fewer than stages) to 8: the
    additions are the same and in the same order."""
    for group in groups(comm, 2, 3, 4):
        for schedule in ("gpipe", "1f1b"):
            for M in (1, 2, 4, 8):
                layout = Layout(pp=group.size, schedule=schedule, microbatches=M)
                trainer = Trainer(UNEVEN, TRAIN, layout, group)
                loss = group.allreduce(trainer.forward_backward(*batch(UNEVEN, TRAIN)))
                grads = trainer.grads()
                if grads is not None:
                    params = initial_params(UNEVEN, TRAIN)
                    want, true = loss_and_grads(params, *batch(UNEVEN, TRAIN), M)
                    assert loss == want and same_bits(grads, true), layout
                trainer.close()


@mpi(4)
def test_a_tied_table_gets_both_of_its_gradients_and_stays_the_same_at_both_ends(comm):
    """After five AdamW steps first and last stage hold the same bits, and they have moved."""
    model, train = replace(UNEVEN, tied=True), replace(TRAIN, steps=5)
    for group in groups(comm, 2, 3, 4):
        layout = Layout(pp=group.size, microbatches=2)
        trainer = Trainer(model, train, layout, group)
        trainer.forward_backward(*batch(model, train))
        grads = trainer.grads()
        if grads is not None:
            true = serial(model, train, 2).grads
            assert worst_error(grads, true)[0] <= 1e-12
            rest = [{u: p for u, p in tree.items() if u != "vocab"} for tree in (grads, true)]
            assert same_bits(*rest)  # only the shared table is summed in another order
        trainer.close()
        trainer = Trainer(model, train, layout, group)
        start = initial(model, "vocab", train.seed, train.dtype, train.init)["w_tok"]
        for step in range(5):
            trainer.step(step, *batch(model, train, step))
        tables = [t for t in group.allgather(trainer.store.params.get("vocab")) if t is not None]
        assert len(tables) == 2 and tables[0].tobytes() == tables[1].tobytes()
        assert not np.isclose(tables[0], start.reshape(-1)).any()
        trainer.close()


@mpi(4)
def test_a_stage_holds_as_many_micro_batches_as_its_schedule_says(comm):
    """Caches counted while it runs, after every computation, and none is left at the end."""
    for schedule in ("gpipe", "1f1b"):
        trainer = Trainer(MODEL, TRAIN, Layout(pp=4, schedule=schedule, microbatches=8), comm)
        held: list[int] = []

        def count(executor, held=held):
            held.append(len(executor.caches))

        trainer.forward_backward(*batch(MODEL, TRAIN), after=count)
        order = trainer.schedule.orders[comm.rank]
        assert max(held) == peak_in_flight(order) == {"gpipe": 8, "1f1b": 4 - comm.rank}[schedule]
        left = trainer.executor
        assert not (left.caches or left.wcaches or left.x or left.dy)
        assert [done.instruction[:3] for done in trainer.timeline] == [*map(tuple, order)]
        trainer.close()


@pytest.mark.smoke
@mpi(2)
def test_no_send_relies_on_room_in_mpis_buffers(comm):
    """Synchronous sends, which are over only when the receiver has come, and messages of half a
    megabyte: 1F1B runs all the same, for no stage waits for its sends before the end."""
    model = ModelConfig(L=2, D=64, H=2, T=128, V=5, F=8)
    train = TrainConfig(global_batch=32, dtype="float64")

    def synchronous(self, x, to, tag):
        return self._moving(self.comm.Issend, x, to, tag)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Direct, "send", synchronous)
        for schedule in ("1f1b", "gpipe"):
            layout = Layout(pp=2, schedule=schedule, microbatches=4)
            trainer = Trainer(model, train, layout, comm)
            trainer.forward_backward(*batch(model, train))
            (wire,) = {t.payload // t.count for t in trainer.mesh.ledger.totals.values()}
            assert wire == 8 * 128 * 64 * 8
            trainer.close()


def v_shaped(M):
    """Four chunks on two stages, down and up again; backward in its two halves, weights last."""
    down, up = (0, 3), (1, 2)
    orders = []
    for first, second in (down, up):
        order = [(F, first, m) for m in range(M)]
        for m in range(M):
            order += [(F, second, m), (B, second, m)]
        order += [(B, first, m) for m in range(M)]
        order += [(W, chunk, m) for chunk in (second, first) for m in range(M)]
        orders.append(order)
    return schedule_of("v", M, (0, 1, 1, 0), orders)


@mpi(2)
def test_any_placement_runs_with_hand_overs_in_place_and_backward_in_halves(comm):
    """A V of four chunks on two stages: the turn is local, and serial's bits come out."""
    M, model = 4, UNEVEN
    schedule = v_shaped(M)
    assert sum(i.op in SENDS for program in programs(schedule) for i in program) == 2 * 2 * M
    mesh = Mesh(Layout(pp=2, microbatches=M), comm)
    mine = [c for c, stage in enumerate(schedule.placement) if stage == comm.rank]
    layers = cut_layers(model, 4)
    units = [u for c in mine for u in layers[c]]
    params = initial_params(model, TRAIN)
    start = ((u, params[u]) for u in units)
    store = Store(start, 0, mesh, TRAIN, tied=False, counts_here=lambda key: True)
    chunks = {c: Chunk(layers[c], LAYERS, store) for c in mine}
    shape = (TRAIN.global_batch // M, model.T, model.D)
    executor = Executor(chunks, loss_functions(mesh.tp, model.V), mesh.pp, shape, "float64")
    tokens, targets = (a.reshape(M, -1, model.T) for a in batch(model, TRAIN))
    loss, _ = executor.run(schedule, tokens, targets, targets.size)
    want, true = loss_and_grads(params, *batch(model, TRAIN), M)
    grads = store.whole("grads", store.grads)
    assert loss == (want if comm.rank == 0 else 0.0)
    assert same_bits(grads, {u: true[u] for u in grads}) and set(grads) == set(units)
