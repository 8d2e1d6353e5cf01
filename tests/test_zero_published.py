"""The printed tables of the ZeRO family, from the closed forms and from live arrays."""

import json
from pathlib import Path

import numpy as np
import pytest
from groups import groups
from mpitest import mpi

from tparallel.config import Layout, ModelConfig, TrainConfig
from tparallel.predict.held import states
from tparallel.predict.zero_wire import integers, vectors
from tparallel.serial.parameters import count, shapes
from tparallel.train import Trainer
from tparallel.zero.store import SHARDED_FROM

PRINTED = json.loads((Path(__file__).parent / "data/zero_tables.json").read_text())
KINDS = ("params", "grads", "optimizer")
HALF = {"float16": [2, 2, 12], "float32": [4, 4, 8], "float64": [8, 8, 16]}
# D = F = 1: each rank's share of every layer is odd, so that padding shows on 2, 4 and 8 ranks.
ODD = ModelConfig(L=2, D=3, H=1, T=4, V=7, F=5)
EVEN = ModelConfig(L=2, D=8, H=2, T=8, V=24, F=16)  # 8 divides every layer


def by_rows(table):
    return pytest.mark.parametrize("row", PRINTED[table], ids=[r["id"] for r in PRINTED[table]])


@by_rows("memory")
def test_model_states_per_device_are_those_printed(row):
    """ZeRO table 1, ZeRO-Infinity's 20 bytes, DeepSpeed's estimates: one function, bytes of each
    kind as its arguments.  ``largest_layer``: what stage 3 gathers of it, 2 + 2 bytes."""
    each = dict(zip(KINDS, row["bytes"]))
    held = sum(states(int(row["params"]), row["n"], row["stage"], each).values())
    held += 4 * row.get("largest_layer", 0)
    assert held / row["unit"] == pytest.approx(row["printed"], abs=row["tolerance"], rel=0)


@by_rows("largest_model")
def test_the_largest_model_that_fits_is_the_one_printed(row):
    """ZeRO table 2, theoretical: device bytes × mp / bytes per parameter of one rank."""
    psi, each = 64 * 10**6, dict(zip(KINDS, row["bytes"]))
    per_parameter = sum(states(psi, row["n"], row["stage"], each).values()) / psi
    billions = row["device"] * row["mp"] / per_parameter / 1e9
    assert billions == pytest.approx(row["printed"], rel=row["relative_tolerance"])


@by_rows("volume")
def test_the_volumes_per_step_are_those_printed(row):
    """ZeRO section 7: 2, 2, 3 Ψ.  FSDP: bytes among 512 ranks.  ZeRO++, of half precision's bytes:
    0.5 for 8 bits, 0 for a gather within the group, 0.25 for 4 bits, all but the scales."""
    if "stage" not in row:
        psi = 256 * 1000
        scales = 4 * 1000
        across = {
            "zpp-fwd-allgather": integers(psi, 8) - scales,
            "zpp-reduce-scatter": integers(psi, 4) - scales,
        }
        across["zpp-total"] = sum(across.values())
        assert across[row["id"]] / (2 * psi) == row["printed"]
    elif "n" not in row:
        assert vectors(row["stage"]) == row["printed"]
    else:
        share = (row["n"] - 1) / row["n"]
        assert vectors(row["stage"]) * share * row["model"] == row["printed"]


def live_bytes(store) -> dict[str, int]:
    """What the arrays of a store hold, by kind."""
    held = {"params": store.params, "grads": store.grads}
    out = {kind: sum(a.nbytes for a in part.values()) for kind, part in held.items()}
    state = store.optimizer.state.values()
    return {**out, "optimizer": sum(a.nbytes for part in state for a in part.values())}


@mpi(8, timeout=120)
@pytest.mark.parametrize(
    "dtype", [pytest.param(d, marks=[pytest.mark.slow] * (d == "float64")) for d in HALF]
)
def test_live_arrays_are_the_formulas_of_table_1_on_1_2_4_and_8_ranks(comm, dtype):
    """4Ψ + KΨ/N, 2Ψ + (2+K)Ψ/N, (4+K)Ψ/N bytes exactly, where N divides every layer; else each
    layer counts as the next multiple of N, which is all that padding costs.  16 bytes in all."""
    train = TrainConfig(steps=2, global_batch=8, dtype=dtype)
    P, G, K = HALF[dtype]
    for group in groups(comm, 1, 2, 4, 8):
        N = group.size
        for model in (EVEN, ODD):
            sizes = [sum(int(np.prod(s)) for s in p.values()) for p in shapes(model).values()]
            psi = sum(-(-size // N) * N for size in sizes)
            assert psi == count(model) or model is ODD
            table = {
                0: (P + G + K) * psi,
                1: (P + G) * psi + K * psi // N,
                2: P * psi + (G + K) * psi // N,
                3: (P + G + K) * psi // N,
            }
            for stage in (0, 1, 2, 3) if N > 1 else (0,):
                trainer = Trainer(model, train, Layout(dp=N, zero=stage), group)
                tokens = np.arange(8 * model.T).reshape(8, -1) % model.V
                trainer.step(0, tokens, tokens)
                held = live_bytes(trainer.store)
                assert sum(held.values()) == table[stage], (N, stage, held)
                each = dict(zip(KINDS, (P, G, K)))
                assert held == {
                    kind: sum(states(size, N, stage, each)[kind] for size in sizes)
                    for kind in SHARDED_FROM
                }
                trainer.close()
