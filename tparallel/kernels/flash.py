"""Attention by cuDNN's fused kernels: scores and probabilities never reach the device's memory.

``TPARALLEL_ATTENTION`` is ``cudnn`` or ``blocks`` (device_heads.py); without it cuDNN is taken
where the package nvidia-cudnn-frontend is installed.  Its kernels are for bfloat16, heads of a
multiple of 8 numbers, up to 128, and are asked for texts of a multiple of 64 tokens; other arrays
go through the blocks.

A graph is planned once for each shape; a step only runs it, and nobody waits.

Source: Dao 2023, section 3.1 (FlashAttention-2, on which cuDNN's kernels are built)
"""

import os
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from math import sqrt
from typing import Any, NamedTuple

from ..backend import xp
from ..errors import ConfigError

LARGEST_HEAD, TOKENS = 128, 64


def _choose(wanted: str) -> str:
    if wanted not in ("", "blocks", "cudnn"):
        raise ConfigError(f"TPARALLEL_ATTENTION must be cudnn or blocks: it is {wanted}. Unset it.")
    installed = find_spec("cudnn") is not None
    if wanted == "cudnn" and not installed:
        raise ConfigError(
            "TPARALLEL_ATTENTION=cudnn needs the package nvidia-cudnn-frontend, and it is missing. "
            "Unset it, or install the extra: pip install 'tparallel[cudnn]'."
        )
    return wanted or ("cudnn" if installed else "blocks")


name = _choose(os.environ.get("TPARALLEL_ATTENTION", ""))


class Flash(NamedTuple):
    """What backward needs beside q, k and v."""

    log_sum: Any  # of each row's exponentials, (B, H, T, 1), float32
    z: Any  # (B, T, H, K), the same array that the layer keeps


def takes(itemsize: int, T: int, K: int) -> bool:
    """Are these arrays for cuDNN?"""
    fits = T % TOKENS == 0 and K % 8 == 0 and K <= LARGEST_HEAD
    return name == "cudnn" and itemsize == 2 and fits


def forward(q, kv) -> Flash:
    """z and the rows' log-sums of q (B, T, H, K) and kv (B, T, 2, Hkv, K)."""
    B, T, H, _ = q.shape
    flash = Flash(xp.empty((B, H, T, 1), xp.float32), xp.empty(q.shape, q.dtype))
    arrays = {"q": q, "k": kv[:, :, 0], "v": kv[:, :, 1], "o": flash.z, "stats": flash.log_sum}
    _run(_forward_plan, arrays)
    return flash


def backward(dz, q, kv, flash: Flash):
    """dq, dkv."""
    dq, dkv = xp.empty(q.shape, q.dtype), xp.empty(kv.shape, kv.dtype)
    arrays = {"q": q, "k": kv[:, :, 0], "v": kv[:, :, 1], "o": flash.z, "stats": flash.log_sum}
    arrays |= {"dO": dz, "dQ": dq, "dK": dkv[:, :, 0], "dV": dkv[:, :, 1]}
    _run(_backward_plan, arrays)
    return dq, dkv


class Lies(NamedTuple):
    """An array as cuDNN sees it, (B, H, T, K): where its numbers lie."""

    dims: tuple[int, ...]
    strides: tuple[int, ...]  # in elements


class Plan(NamedTuple):
    graph: Any
    tensors: dict[str, Any]
    workspace: int  # bytes


def _lies(name: str, x) -> Lies:
    order = (0, 1, 2, 3) if name == "stats" else (0, 2, 1, 3)
    return Lies(tuple(x.shape[d] for d in order), tuple(x.strides[d] // x.itemsize for d in order))


def _run(planned, arrays: dict) -> None:
    plan = planned(tuple((name, _lies(name, x)) for name, x in arrays.items()))
    room = xp.empty(max(1, plan.workspace), xp.uint8)
    pointers = {plan.tensors[name]: x.data.ptr for name, x in arrays.items()}
    plan.graph.execute(pointers, room.data.ptr, handle=_handle())


@cache
def _forward_plan(arrays: tuple) -> Plan:
    graph, lies = _graph(), dict(arrays)
    tensors = {name: _input(graph, name, lies[name]) for name in "qkv"}
    tensors["o"], tensors["stats"] = graph.sdpa(
        **tensors, **_settings(lies), generate_stats=True, name="attention"
    )
    return _built(graph, tensors, lies, ("o", "stats"))


@cache
def _backward_plan(arrays: tuple) -> Plan:
    graph, lies = _graph(), dict(arrays)
    tensors = {name: _input(graph, name, lies[name]) for name in ("q", "k", "v", "o", "dO")}
    tensors["stats"] = _input(graph, "stats", lies["stats"])
    grads = graph.sdpa_backward(**tensors, **_settings(lies), name="attention_backward")
    return _built(graph, tensors | dict(zip(("dQ", "dK", "dV"), grads)), lies, ("dQ", "dK", "dV"))


def _settings(lies: dict) -> dict:
    return {"attn_scale": 1 / sqrt(lies["q"].dims[-1]), "use_causal_mask": True}


def _graph() -> Any:
    kinds = _cudnn().data_type
    return _cudnn().pygraph(
        io_data_type=kinds.BFLOAT16,
        intermediate_data_type=kinds.FLOAT,
        compute_data_type=kinds.FLOAT,
        handle=_handle(),
    )


def _kind(name: str) -> Any:
    kinds = _cudnn().data_type
    return kinds.FLOAT if name == "stats" else kinds.BFLOAT16


def _input(graph, name: str, lies: Lies) -> Any:
    dims, strides = map(list, lies)
    return graph.tensor(name=name, dim=dims, stride=strides, data_type=_kind(name))


def _built(graph, tensors: dict, lies: dict, results: tuple[str, ...]) -> Plan:
    for name in results:
        tensor, (dims, strides) = tensors[name], map(list, lies[name])
        tensor.set_output(True).set_dim(dims).set_stride(strides).set_data_type(_kind(name))
    try:
        graph.build([_cudnn().heur_mode.A, _cudnn().heur_mode.FALLBACK])
    except Exception as e:
        raise ConfigError(
            f"cuDNN {_cudnn().backend_version()} must have a kernel for attention of "
            f"{lies['q'].dims} queries and {lies['k'].dims} keys: {e}. Use "
            "TPARALLEL_ATTENTION=blocks."
        ) from None
    return Plan(graph, tensors, graph.get_workspace_size())


@cache
def _cudnn() -> Any:
    for library in ("cudart", "cudnn"):
        with suppress(ImportError, RuntimeError):  # cudnn itself says what is missing
            # It asks for them by name; pathfinder, which CuPy brings, knows where pip puts them.
            from cuda.pathfinder import load_nvidia_dynamic_lib

            load_nvidia_dynamic_lib(library)
    import cudnn

    return cudnn


@cache
def _handle() -> Any:
    """cuDNN's, on the stream of everything else here."""
    handle = _cudnn().create_handle()
    _cudnn().set_stream(handle=handle, stream=xp.cuda.get_current_stream().ptr)
    return handle
