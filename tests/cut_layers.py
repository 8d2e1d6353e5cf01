"""The layers of serial/ and of tensor_parallel/ behind one name each, and something to run."""

from functools import partial

import numpy as np

from tparallel.config import ModelConfig
from tparallel.serial import attention, mlp
from tparallel.serial.model import LAYERS, LayerFunctions
from tparallel.serial.parameters import initial, prefixed, sub
from tparallel.tensor_parallel import attention as cut_attention
from tparallel.tensor_parallel import mlp as cut_mlp
from tparallel.tensor_parallel.model import cut_layer_functions
from tparallel.tensor_parallel.region import TensorParallel

MODEL = ModelConfig(L=1, D=24, H=12, T=5, V=23, F=36)
B = 3
KINDS = ("attention", "mlp", "block", "embed", "head")
PREFIX = {"attention": "attn.", "mlp": "mlp."}  # parts of a block: their names without this

SERIAL = {
    "attention": LayerFunctions(
        attention.attention_forward,
        attention.attention_backward_input,
        attention.attention_backward_weight,
        attention.attention_backward,
    ),
    "mlp": LayerFunctions(
        mlp.mlp_forward, mlp.mlp_backward_input, mlp.mlp_backward_weight, mlp.mlp_backward
    ),
    **LAYERS,
}


def CUT(axis, V: int, region=TensorParallel) -> dict[str, LayerFunctions]:
    """The same names, cut over ``axis``."""
    tp = region(axis)
    return {
        "attention": LayerFunctions(
            partial(cut_attention.attention_forward, tp=tp),
            partial(cut_attention.attention_backward_input, tp=tp),
            cut_attention.attention_backward_weight,
            partial(cut_attention.attention_backward, tp=tp),
        ),
        "mlp": LayerFunctions(
            partial(cut_mlp.mlp_forward, tp=tp),
            partial(cut_mlp.mlp_backward_input, tp=tp),
            cut_mlp.mlp_backward_weight,
            partial(cut_mlp.mlp_backward, tp=tp),
        ),
        **cut_layer_functions(tp, V),
    }


def inputs(kind: str, model: ModelConfig, dtype: str = "float64"):
    """x, all parameters by their full names, and dy; tokens hold the first and the last id."""
    rng = np.random.default_rng(5)
    layer = kind if kind in ("embed", "head") else "block.0"
    p = initial(model, layer, 3, dtype, "random")
    p = {name: a for name, a in p.items() if name.startswith(PREFIX.get(kind, ""))}
    x = rng.normal(size=(B, model.T, model.D)).astype(dtype)
    if kind == "embed":
        x = rng.integers(0, model.V, (B, model.T))
        x[0, 0], x[-1, -1] = model.V - 1, 0
    width = model.V if kind == "head" else model.D
    return x, p, rng.normal(size=(B, model.T, width)).astype(dtype)


def run(table: dict, kind: str, x, p: dict, dy):
    """y, dx and the gradients by their full names: both halves apart."""
    layer, prefix = table[kind], PREFIX.get(kind, "")
    p = sub(p, prefix)
    y, cache = layer.forward(x, p)
    dx, wcache = layer.backward_input(dy, cache, p)
    dx = dx.wait() if hasattr(dx, "wait") else dx  # attention's and mlp's sums are pending
    return y, dx, prefixed(prefix, layer.backward_weight(wcache))


def run_whole(table: dict, kind: str, x, p: dict, dy):
    """y, dx and the gradients by their full names: both halves as one."""
    layer, prefix = table[kind], PREFIX.get(kind, "")
    p = sub(p, prefix)
    y, cache = layer.forward(x, p)
    dx, grads = layer.backward(dy, cache, p)
    return y, dx, prefixed(prefix, grads)
