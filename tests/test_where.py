"""``tparallel where``: what it says about a rank is what that rank's store really holds."""

import argparse
from collections import Counter

import numpy as np
import pytest
from mpitest import mpi

from tparallel.commands import where as command
from tparallel.config import Layout, ModelConfig, TrainConfig, replace
from tparallel.errors import ConfigError
from tparallel.serial.train import initial_params, train_step, zeros_like
from tparallel.train import Trainer
from tparallel.where import find, names, overlap, sums, unit_of, where

MODEL = ModelConfig(L=3, D=8, H=4, T=4, V=21, F=12)  # 21 is cut unevenly; shards need padding
TIED = ModelConfig(L=3, D=8, H=4, T=4, V=21, F=12, tied=True)
TRAIN = TrainConfig(global_batch=4, dtype="float64", init="random", clip=0.0, steps=1)

AXIS = {"near": "dp", "far": "dp"}  # the two factors of dp under hybrid sharding


def batch(model: ModelConfig):
    rng = np.random.default_rng(5)
    return rng.integers(0, model.V, (2, TRAIN.global_batch, model.T))


def serial(model: ModelConfig) -> dict:
    """Parameters before a step and moments after it, by serial/train.py; m holds the gradient."""
    params = initial_params(model, TRAIN)
    before = {unit: {n: a.copy() for n, a in p.items()} for unit, p in params.items()}
    m, v = zeros_like(params), zeros_like(params)
    train_step(params, (m, v), *batch(model), 0, TRAIN)
    grads = {u: {n: a / (1 - TRAIN.beta1) for n, a in p.items()} for u, p in m.items()}
    return {"params": before, "grads": grads, "m": m, "v": v}


def check_rank(comm, model: ModelConfig, layout: Layout) -> None:
    """Every parameter, gradient and moment of this rank against serial, by the stated ranges."""
    truth, trainer = serial(model), Trainer(model, TRAIN, layout, comm)
    store = trainer.store
    before = {bucket: flat.copy() for bucket, flat in store.params.items()}
    trainer.forward_backward(*batch(model))
    grads = {bucket: flat.copy() for bucket, flat in store.grads.items()}
    sent = {(AXIS.get(key.axis, key.axis), key.what) for key in trainer.mesh.ledger.totals}
    store.update(0, 0.0)
    m, v = store.moments
    counts: Counter = Counter()
    for name in names(model):
        unit, own = unit_of(name, model), name.removeprefix(unit_of(name, model) + ".")
        mine = [h for h in where(name, model, TRAIN, layout) if h.rank == comm.rank]
        assert len(mine) == (unit in store.bucket_of)
        for held in mine:
            bucket = store.bucket_of[unit]
            for kind, vectors, whole in (
                ("params", before, truth["params"]),
                ("grads", grads, truth["grads"]),
                ("optimizer", m, truth["m"]),
                ("optimizer", v, truth["v"]),
            ):
                kept = held.kept[kind]
                counts[kind, bucket] += kept.stop - kept.start
                if kind == "grads" and layout.zero == 1:
                    kept = overlap(held.vector, held.shard)  # the rest is summed elsewhere
                compare(held, kept, vectors[bucket], whole[unit][own], (kind, name))
            said = {s.axis for s in sums(name, model, layout) if s.groups}
            assert said == {axis for axis, what in sent if what == f"{bucket} grads"}
    stored = {("params", b): flat for b, flat in before.items()}
    stored |= {("grads", b): flat for b, flat in grads.items()}
    stored |= {("optimizer", b): [*m[b], *v[b]] for b in before}
    padding = {b: store.partitions[b].padded - store.partitions[b].size for b in before}
    for (kind, b), flat in stored.items():
        assert 0 <= len(flat) - counts[kind, b] <= (2 if kind == "optimizer" else 1) * padding[b]
    trainer.close()


def compare(held, kept: slice, flat: np.ndarray, whole: np.ndarray, what: tuple) -> None:
    """The range ``kept`` of what is stored, against the same numbers cut out of the whole."""
    start = held.vector.start
    said = whole[held.cut].reshape(-1)[kept.start - start : kept.stop - start]
    begin = held.shard.start if len(flat) == held.shard.stop - held.shard.start else 0
    found = flat[kept.start - begin : kept.stop - begin]
    error = np.abs(found - said).max(initial=0)
    assert found.shape == said.shape and error <= 1e-12, (what, error)


@mpi(8)
@pytest.mark.parametrize("tied", [pytest.param(False, marks=pytest.mark.slow), True])
def test_all_three_axes_hold_what_where_says(comm, tied):
    """tp=2 pp=2 dp=2 under each ZeRO stage: every range of every rank against serial."""
    for zero in range(4):
        check_rank(comm, TIED if tied else MODEL, Layout(2, 2, 2, zero, microbatches=2))


@mpi(4)
def test_pairs_of_axes_hold_what_where_says(comm):
    """Uneven vocabulary over tp = 4, shards that need padding over dp = 4, and pairs."""
    check_rank(comm, MODEL, Layout(tp=4))
    check_rank(comm, TIED, Layout(tp=2, pp=2))
    for zero in (1, 2, 3):
        check_rank(comm, TIED, Layout(dp=4, zero=zero))
        check_rank(comm, MODEL, Layout(tp=2, dp=2, zero=zero))
    check_rank(comm, TIED, Layout(pp=2, dp=2, zero=2, schedule="gpipe", microbatches=2))


@mpi(4)
def test_buckets_and_shard_groups_hold_what_where_says(comm):
    """Several layers in one vector, and shards cut over groups of two with copies across."""
    for zero in (1, 3):
        for model in (MODEL, TIED):
            check_rank(comm, model, Layout(dp=4, zero=zero, shard_group=2))
            check_rank(comm, model, Layout(tp=2, dp=2, zero=zero, bucket_bytes=6000))
    layout = Layout(dp=4, zero=2, bucket_bytes=10**6, shard_group=2, reduce_each="step")
    check_rank(comm, MODEL, layout)


@mpi(8)
def test_the_ranks_named_as_a_group_share_a_communicator(comm):
    """dp groups and, for a tied table, the ends of the pipeline: as the mesh has joined them."""
    layout = Layout(2, 2, 2, 1)
    trainer = Trainer(TIED, TRAIN, layout, comm)
    me = np.array([comm.rank])
    joined = {
        "dp": tuple(trainer.mesh.dp.all_gather(me, what="who").tolist()),
        "pp": tuple(trainer.mesh.ends.all_gather(me, what="who").tolist()),
    }
    said = {s.axis: s.groups for s in sums("vocab.w_tok", TIED, layout)}
    for axis, group in joined.items():
        assert [g for g in said[axis] if comm.rank in g] == [group]
    assert said["tp"] == []
    trainer.close()


def test_where_names_who_sums_shares_of_tokens_and_shared_heads():
    """Norms under sequence parallelism, over the tp ring; a key/value head, over who holds it."""
    grouped = replace(MODEL, Hkv=2)

    def over_tp(name, layout, model=MODEL):
        return next(s for s in sums(name, model, layout) if s.axis == "tp")

    assert over_tp("block.0.norm1.g", Layout(tp=2, sp="keep")).groups == [(0, 1)]
    assert over_tp("block.0.attn.b_out", Layout(tp=2, sp="keep")).groups == []
    assert over_tp("block.0.norm1.g", Layout(tp=2)).groups == []
    assert over_tp("block.0.attn.w_kv", Layout(tp=4), grouped).groups == [(0, 1), (2, 3)]
    assert over_tp("block.0.attn.w_kv", Layout(tp=2), grouped).groups == []


@mpi(4)
def test_a_replicated_parameter_gets_the_same_gradient_on_every_tp_rank(comm):
    """What ``where`` claims of parameters that are not cut: equal without a sum, bit for bit."""
    trainer = Trainer(MODEL, TRAIN, Layout(tp=4), comm)
    trainer.forward_backward(*batch(MODEL))
    for name in ("block.1.norm1.g", "block.1.mlp.b_out", "embed.w_pos", "head.norm.b"):
        unit = unit_of(name, MODEL)
        (mine,) = [h for h in where(name, MODEL, TRAIN, Layout(tp=4)) if h.rank == comm.rank]
        everybody = comm.allgather(trainer.store.grads[unit][mine.vector].tobytes())
        assert len(set(everybody)) == 1, name
        assert any(trainer.store.grads[unit][mine.vector]), name
    trainer.close()


def test_a_name_or_a_pattern_finds_parameters():
    """A full name finds itself, a layer and a pattern all that match; a tied table is one."""
    assert find("block.1.mlp.w_in", MODEL) == ["block.1.mlp.w_in"]
    assert find("block.?.mlp.w_in", MODEL) == [f"block.{i}.mlp.w_in" for i in range(3)]
    assert find("*.w_tok", TIED) == ["vocab.w_tok"]
    assert find("head", MODEL) == ["head.norm.g", "head.norm.b", "head.w_tok"]
    assert len(find("*", MODEL)) == 3 * 14 + 5


@pytest.mark.parametrize(
    "typo, nearest",
    [("block.1.mlp.win", "block.1.mlp.w_in"), ("blok.2.norm1.g", "block.2.norm1.g")],
)
def test_a_typo_is_answered_with_the_nearest_names(typo, nearest):
    """ConfigError: the rule, what was asked, the names that come closest."""
    with pytest.raises(ConfigError, match=f"'{typo}' is none of 47. Use .*{nearest}"):
        find(typo, MODEL)


def printed(capsys, line: str) -> str:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert command.main(parser.parse_args(line.split())) == 0
    return capsys.readouterr().out


def test_the_answer_names_slice_range_and_reason(capsys, monkeypatch):
    """For the example of --help: 100 columns, a row per rank, and each axis with its reason."""
    monkeypatch.setenv("COLUMNS", "100")
    out = printed(capsys, "block.1.mlp.w_in --tp 2 --pp 2 --dp 2 --zero 3")
    rows = [line.split() for line in out.splitlines()]
    assert ["5", "1", "0", "1", "[:,", "256:512]", *["49760:66368"] * 3] in rows
    assert ["2", "0", "1", "0", "not", "here"] in rows
    assert "dp: ranks 0 + 4; 1 + 5. They hold the same numbers" in out
    assert "tp: nobody. The parameter is cut" in out
    assert "pp: nobody. Only one stage uses it" in out
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize("layout", ["", "--tp 2", "--dp 2 --zero 1", "--pp 2 --tied"])
def test_every_parameter_has_an_answer(capsys, layout):
    """No name, under no layout, leaves the table without a rank that holds it."""
    model = ModelConfig(tied="--tied" in layout)
    for name in names(model):
        out = printed(capsys, f"{name} {layout}")
        assert name in out and "all" in out


def test_a_pattern_lists_names_and_shapes(capsys):
    """Several matches: a list to choose from, no table of ranks."""
    out = printed(capsys, "block.0.mlp.*")
    assert [line.split()[0] for line in out.splitlines() if "block" in line] == [
        f"block.0.mlp.{n}" for n in ("w_in", "b_in", "w_out", "b_out")
    ]
