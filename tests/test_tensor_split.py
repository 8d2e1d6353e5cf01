"""The cut itself: who holds which slice, what is sent, and how little the files differ."""

import ast
import difflib
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cut_layers import CUT, MODEL, B, inputs, run
from groups import axes
from mpitest import mpi

import tparallel
from tparallel.config import ModelConfig
from tparallel.serial import loss
from tparallel.serial.model import LAYERS
from tparallel.serial.parameters import initial, shapes
from tparallel.tensor_parallel.model import layer_functions, loss_functions
from tparallel.tensor_parallel.split import SPLIT_DIM, part, shard, shard_shape, unshard

F8 = 8  # bytes of a float64
# The lines of a serial file that tensor parallelism changes, the argument tp itself not counted.
CHANGED = {"mlp": 10, "attention": 12, "block": 4, "embedding": 9, "head": 16, "loss": 9}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("Hkv", [12, 2, 1])
def test_shard_then_unshard_gives_the_whole_layer_back(tied, Hkv):
    """For every layer and every n, whether n divides the vocabulary or not, or is more than the
    key/value heads; no memory is shared."""
    model = ModelConfig(L=1, D=24, H=12, T=5, V=23, F=36, tied=tied, Hkv=Hkv)
    for layer, named in shapes(model).items():
        whole = initial(model, layer, 0, "float64", "random")
        for n in (1, 2, 3, 4, 6, 12):
            parts = [shard(whole, rank, n) for rank in range(n)]
            again = unshard(parts, named)
            assert list(again) == list(whole)
            for name, shape in named.items():
                assert np.array_equal(again[name], whole[name]), (layer, name, n)
                for rank, p in enumerate(parts):
                    assert p[name].shape == shard_shape(name, shape, rank, n)
                    assert p[name].flags.c_contiguous
                    assert not np.shares_memory(p[name], whole[name])


def test_a_rank_holds_the_same_heads_of_q_k_and_v_and_of_the_output():
    """Entry (d, h, k) of W_q carries the number of its head: rank r has heads r H/n onward."""
    D, H, K, n = 6, 12, 2, 4
    heads = np.arange(float(H))
    whole = {
        "attn.w_q": np.broadcast_to(heads[:, None], (D, H, K)),
        "attn.b_q": np.broadcast_to(heads[:, None], (H, K)),
        "attn.w_kv": np.broadcast_to(heads[:, None], (D, 2, H, K)),
        "attn.b_kv": np.broadcast_to(heads[:, None], (2, H, K)),
        "attn.w_out": np.broadcast_to(heads[:, None, None], (H, K, D)),
    }
    for rank in range(n):
        mine = heads[rank * H // n : (rank + 1) * H // n]
        p = shard(whole, rank, n)
        assert np.array_equal(p["attn.w_q"], np.broadcast_to(mine[:, None], (D, H // n, K)))
        assert np.array_equal(p["attn.b_q"], np.broadcast_to(mine[:, None], (H // n, K)))
        assert np.array_equal(p["attn.w_kv"], np.broadcast_to(mine[:, None], (D, 2, H // n, K)))
        assert np.array_equal(p["attn.b_kv"], np.broadcast_to(mine[:, None], (2, H // n, K)))
        assert np.array_equal(p["attn.w_out"], np.broadcast_to(mine[:, None, None], (H // n, K, D)))


def test_only_what_is_in_the_table_is_cut():
    """Norms, row biases and positions are whole on every rank; all matrices but W_pos are cut."""
    cut = {name for p in shapes(MODEL).values() for name in p if name in SPLIT_DIM}
    whole = {name for p in shapes(MODEL).values() for name in p} - cut
    assert cut == set(SPLIT_DIM)
    assert {name for name in whole if name.rpartition(".")[2].startswith("w_")} == {"w_pos"}
    assert {"attn.b_out", "mlp.b_out"} <= whole


@mpi(4)
def test_no_message_is_as_large_as_even_one_ranks_logits(comm):
    """A large vocabulary: what crosses is B T D per sum and three numbers per token of the loss;
    a block makes two sums forward and two backward."""
    V = 1009
    model = ModelConfig(L=1, D=24, H=12, T=5, V=V, F=36)
    for tp in axes(comm, 2, 3, 4):
        for kind in ("embed", "block", "head"):
            x, p, dy = inputs(kind, model)
            dy = dy[..., part(V, tp.rank, tp.size)].copy() if kind == "head" else dy
            y, _, _ = run(CUT(tp, V), kind, x, shard(p, tp.rank, tp.size), dy)
        forward, backward = loss_functions(tp, V)
        backward(forward(y, np.full((B, 5), V - 1), B * 5)[1])
        sent = {key.what: (t.count, t.payload) for key, t in tp.ledger.totals.items()}
        BT = B * model.T
        whats = ("embed.x", "attn.y", "attn.dx", "mlp.y", "mlp.dx", "head.dn")
        want = dict.fromkeys(whats, (1, BT * model.D * F8))
        assert sent == want | {"loss.top": (1, BT * F8), "loss.sums": (1, 2 * BT * F8)}
        assert max(payload for _, payload in sent.values()) < BT * (V // tp.size) * F8


def test_on_one_rank_the_table_of_layers_is_serials_own():
    """Nothing is copied where nothing is cut."""
    alone = SimpleNamespace(size=1)
    assert layer_functions(alone, 23) is LAYERS
    assert loss_functions(alone, 23) == (loss.cross_entropy_forward, loss.cross_entropy_backward)


def functions_of(folder, file):
    """{name: lines of code}, without docstrings, comments and the arguments tp and V."""
    tree = ast.parse((Path(tparallel.__file__).parent / folder / f"{file}.py").read_text())
    out = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            if ast.get_docstring(node) is not None:
                del node.body[0]
            out[node.name] = re.sub(r"(, tp)?(, V)?\)", ")", ast.unparse(node)).splitlines()
    return out


@pytest.mark.parametrize("file", CHANGED)
def test_the_whole_diff_of_a_cut_file_fits_one_screen(file):
    """``diff serial/X.py tensor_parallel/X.py``, docstrings and all, in 72 lines or fewer."""
    package = Path(tparallel.__file__).parent
    files = (package / "serial" / f"{file}.py", package / "tensor_parallel" / f"{file}.py")
    ended = subprocess.run(["diff", *map(str, files)], capture_output=True, text=True)
    assert ended.returncode == 1 and len(ended.stdout.splitlines()) <= 72


@pytest.mark.parametrize("file", CHANGED)
def test_a_cut_file_differs_from_its_serial_twin_in_a_few_lines(file):
    """The same functions in the same order; the lines that are new or changed are the method."""
    serial, cut = functions_of("serial", file), functions_of("tensor_parallel", file)
    shared = [name for name in serial if name in cut]
    assert [name for name in cut if name in serial] == shared and len(shared) >= 2
    changed = []
    for name in shared:
        lines = difflib.ndiff(serial[name], cut[name])
        changed += [line for line in lines if line[:2] in ("+ ", "- ")]
    print(f"{file}: of {sum(len(cut[name]) for name in shared)} lines", *changed, sep="\n")
    assert sum(line[0] == "+" for line in changed) <= CHANGED[file]
    assert sum(line[0] == "-" for line in changed) <= CHANGED[file]
