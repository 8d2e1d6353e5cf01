"""Integers on the wire: how exact, how many bytes, and what it does to training."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mpitest import mpi

from tparallel.comm.axis import Axis
from tparallel.comm.ledger import Ledger
from tparallel.config import Layout, ModelConfig, TrainConfig
from tparallel.train import Trainer
from tparallel.zero.quantised import BLOCK, decode, encode, size, start_reduce_scatter


@given(
    st.integers(1, 3 * BLOCK + 1), st.integers(1, 3), st.sampled_from([4, 8]), st.integers(0, 99)
)
def test_a_number_arrives_within_half_a_unit_of_its_block(n, rows, bits, seed):
    """|x − x̂| ≤ max|block| / (2^bits − 2); zeros stay zeros; the message has ``size`` bytes."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(rows, n)) * 10.0 ** rng.integers(-6, 6, (rows, 1))).astype(np.float32)
    x[:, : n // 3] = 0
    message = encode(x, bits)
    assert message.dtype == np.uint8 and message.shape == (rows, size(n, bits))
    back = decode(message, n, bits)
    assert back.dtype == np.float32 and not back[:, : n // 3].any()
    for start in range(0, n, BLOCK):
        block, got = x[:, start : start + BLOCK], back[:, start : start + BLOCK]
        unit = np.abs(block).max(-1, keepdims=True) / (2 ** (bits - 1) - 1)
        assert (np.abs(block - got) <= unit / 2 * (1 + 1e-5)).all()


@pytest.mark.parametrize("bits, share", [(8, 0.5), (4, 0.25)])
def test_the_share_of_half_precisions_bytes_is_stated_exactly(bits, share):
    """0.5 or 0.25, and 2/256 for the scales; the last block is filled up."""
    assert size(256 * 40, bits) / (2 * 256 * 40) == share + 2 / 256
    assert size(1, bits) == size(256, bits)


@mpi(4)
def test_a_sum_in_two_hops_is_the_sum_to_the_rounding_of_both(comm):
    """Groups of two: against the exact sum, each rank its own shard; and one hop over all four."""
    axes = {}
    for name, color in (("near", comm.rank // 2), ("far", comm.rank % 2), ("dp", 0)):
        axes[name] = Axis(name, comm.Split(color, comm.rank), Ledger())
    k = 700
    x = np.random.default_rng(comm.rank).normal(size=4 * k).astype(np.float32)
    everybody = np.array(comm.allgather(x))
    exact = everybody.sum(0)[comm.rank * k : (comm.rank + 1) * k]
    unit = np.abs(everybody).max() / 7 / 2  # of one rounding
    for hops, roundings in ((["dp"], 4), (["near", "far"], 4 + 2 * 2)):
        got = start_reduce_scatter([axes[a] for a in hops], x, what="x").wait()
        assert got.shape == exact.shape and got.dtype == x.dtype
        assert 0 < np.abs(got - exact).max() <= roundings * unit
    assert axes["near"].ledger.wire("near") == size(2 * k, 4)
    assert axes["far"].ledger.wire("far") == size(k, 4)
    assert axes["dp"].ledger.wire("dp") == 3 * size(k, 4)
    for axis in axes.values():
        axis.close()


@pytest.mark.slow
@mpi(4, timeout=120)
def test_training_with_integers_on_the_wire_ends_near_the_same_loss(comm):
    """Eighty steps: 8-bit parameters within 1 %, with 4-bit gradients within 5 % of the loss
    without; not equal, for rounding is not nothing.  Every rank holds the same numbers."""
    model = ModelConfig(L=2, D=32, H=2, T=16, V=32)
    steps = np.random.default_rng(0).integers(0, 3, (80, 8, 17)).cumsum(-1) % 32
    ends = {}
    for quantise in ("", "weights", "both"):
        layout = Layout(dp=4, zero=3, shard_group=2, secondary=True, quantise=quantise)
        train = TrainConfig(steps=80, warmup=5, lr=1e-2, dtype="float16")
        trainer = Trainer(model, train, layout, comm)
        losses = [trainer.step(k, s[:, :-1], s[:, 1:])[0] for k, s in enumerate(steps)]
        ends[quantise] = float(np.mean(losses[-10:]))
        copies = [h.tobytes() for _, h in sorted(trainer.store.moves.secondary.items())]
        assert copies == []  # an update ends them
        trainer.close()
    assert ends["weights"] != ends[""] and ends["both"] != ends["weights"]
    assert ends["weights"] == pytest.approx(ends[""], rel=0.01), ends
    assert ends["both"] == pytest.approx(ends[""], rel=0.05), ends
