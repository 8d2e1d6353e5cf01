"""``scripts/bench tensor-parallel``: that both sides run, and that the peer is the same model."""

import pytest
from mpitest import mpirun
from test_bench_pipeline import BENCH, KEYS, rows


@pytest.mark.oracle
def test_the_bench_compares_with_pytorch(tmp_path):
    """A tiny run of two rounds: plain, sequence parallel and without overlap."""
    found = rows(tmp_path / "t.json", "tensor-parallel", "--sizes", "tiny", "--rounds", "2", "--sp")
    assert [row["bench"] for row in found] == [
        "tensor-parallel",
        "tensor-parallel sp",
        "tensor-parallel overlap=0",
    ]
    assert all(row.keys() == KEYS and row["ours"] > 0 and row["theirs"] > 0 for row in found)


@pytest.mark.oracle
def test_the_peers_two_ranks_compute_one_model(tmp_path):
    """Two ranks of the peer, given the parts of one whole model's weights, have its loss and its
    gradient of the embedding: f and g by hand are right."""
    script = tmp_path / "peer.py"
    script.write_text(PEER.format(folder=BENCH.rsplit("/", 1)[0]))
    ended = mpirun(2, str(script))
    assert ended.code == 0, ended.out


PEER = """
import os, sys
sys.path.insert(0, "{folder}")
from mpi4py import MPI
import torch
from torch import distributed, nn
comm = MPI.COMM_WORLD
from bench_lib import gloo
from bench_lib import torch_gpt, torch_tensor_parallel
from tparallel.config import ModelConfig
gloo.join(comm)
c = ModelConfig(L=2, D=16, H=4, T=6, V=11)
torch.manual_seed(0)
whole = nn.Sequential(*torch_gpt.layers(c)).double()
cut = nn.Sequential(*torch_tensor_parallel.layers(c, 2)).double()
r = comm.rank
with torch.no_grad():
    for a, b in zip(whole, cut):
        if not isinstance(b, torch_tensor_parallel.Block):
            b.load_state_dict(a.state_dict())
            continue
        for norm in ("norm1", "norm2"):
            getattr(b, norm).load_state_dict(getattr(a, norm).state_dict())
        b.qkv.weight.copy_(torch.cat([w.chunk(2)[r] for w in a.qkv.weight.chunk(3)]))
        b.qkv.bias.copy_(torch.cat([w.chunk(2)[r] for w in a.qkv.bias.chunk(3)]))
        b.up.weight.copy_(a.up.weight.chunk(2)[r]); b.up.bias.copy_(a.up.bias.chunk(2)[r])
        b.out.weight.copy_(a.out.weight.chunk(2, 1)[r]); b.out_bias.copy_(a.out.bias)
        b.down.weight.copy_(a.down.weight.chunk(2, 1)[r]); b.down_bias.copy_(a.down.bias)
x, y = torch.randint(0, 11, (2, 3, 6))
losses = []
for model in (whole, cut):
    loss = torch_gpt.mean_loss(model(x), y)
    loss.backward()
    losses.append(loss.item())
assert abs(losses[0] - losses[1]) < 1e-12, losses
for name in ("tokens", "positions"):
    a, b = (getattr(m[0], name).weight.grad for m in (whole, cut))
    assert (a - b).abs().max() < 1e-12, name
distributed.destroy_process_group()
"""
