"""Arithmetic in which the order of a sum does not matter, so that every layout has the same bits.

"Rounding or bug?"  Two layouts add the same numbers in another order, and floating point rounds
differently; a bug may look like that.  Here every factor of a matrix product and every term of a
sum is first rounded to a multiple of a fixed power of two.  Products and sums of such numbers are
exact in float64, as long as they stay below 2⁵³ units: nothing is rounded, so no order, no split
and no BLAS kernel can change a bit.  What differs in this mode is a bug.

tp, pp, dp, every schedule, ZeRO stage and number of micro-batches then agree to the last bit, at
any size, 259 tokens of vocabulary too.  Not under sequence parallelism, whose reordered copies are
plain arrays again.  It is slow, about as precise as float32, and for NumPy's plain kernels only
(``TPARALLEL_KERNELS=plain``).  No layer knows: the arrays themselves carry the arithmetic.

Without it, these pairs agree bit for bit (a test says each): pipelines with serial, micro-batches
added in the same order; every ZeRO stage with plain data parallelism, where each rank's
micro-batches are summed alike; recomputed with kept activations; tp = 1 with serial.

Source: Demmel, Nguyen 2013, section 3 (sums that are exact because their terms are pre-rounded)
"""

from typing import Any

import numpy as np

from .. import kernels
from ..errors import ConfigError
from ..serial.model import LayerFunctions
from ..train import Trainer


class Value(np.ndarray):
    """An array of the forward pass."""

    factor, term = 2.0**-20, 2.0**-30  # the units of factors and of terms

    def __array_ufunc__(
        self, ufunc: Any, method: str, *inputs: Any, out: Any = (), **more: Any
    ) -> Any:
        kind = Gradient if any(isinstance(a, Gradient) for a in inputs) else Value
        plain = [_rounded(a, ufunc, method, kind) for a in inputs]
        if out:
            more["out"] = tuple(np.asarray(a) for a in out)
        result = getattr(ufunc, method)(*plain, **more)
        if out:
            return out[0]
        return result.view(kind) if isinstance(result, np.ndarray) else result

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if func is np.vdot:  # the gradient norm: squares of multiples of 2⁻²⁴
            a, b = (_to(np.asarray(a), 2.0**-24) for a in args)
            return np.vdot(a, b)
        return super().__array_function__(func, types, args, kwargs)


class Gradient(Value):
    """An array of the backward pass: small numbers, a finer grid."""

    factor, term = 2.0**-32, 2.0**-44


def _rounded(a: Any, ufunc: Any, method: str, kind: type[Value]) -> Any:
    """A plain array; rounded if it is a factor of a product or a term of a sum."""
    if not isinstance(a, np.ndarray):
        return a
    plain = np.asarray(a)
    if plain.dtype != np.float64:
        return plain
    if ufunc is np.matmul:
        return _to(plain, a.factor if isinstance(a, Value) else Value.factor)
    if ufunc is np.add and method == "reduce":
        return _to(plain, kind.term)
    if ufunc is np.add and method == "at" and isinstance(a, Value):
        return _to(plain, kind.term)
    return plain


def _to(a: np.ndarray, unit: float) -> np.ndarray:
    return np.rint(a * (1 / unit)) * unit


def make_exact(trainer: Trainer) -> Trainer:
    """The same trainer; from now on its layers, its loss and its norm compute exactly.

    Errors: ConfigError unless float64, plain kernels, no sequence parallelism, and a power of two
    of tokens per batch (the loss divides by it).
    """
    tokens = trainer.train.global_batch * trainer.model.T
    if trainer.layout.sp:
        raise ConfigError(
            "exact sums do not follow the reordered copies of sequence parallelism: sp = "
            f"{trainer.layout.sp}. Use no sp."
        )
    if kernels.name != "plain" or trainer.train.dtype != "float64" or tokens & (tokens - 1):
        raise ConfigError(
            "exact sums need float64, plain kernels and a power of two of tokens per batch: "
            f"dtype = {trainer.train.dtype}, kernels = {kernels.name}, tokens = {tokens}. Use "
            "float64, TPARALLEL_KERNELS=plain and another T or global_batch."
        )
    executor, store = trainer.executor, trainer.store
    for chunk in executor.chunks.values():
        chunk.functions = {layer: _exact(f) for layer, f in chunk.functions.items()}
    forward, backward = executor.loss_forward, executor.loss_backward
    executor.loss_forward = lambda logits, *more: forward(_as(Value, logits), *more)
    executor.loss_backward = lambda cache: _as(Gradient, backward(cache))
    store.grads = {bucket: _as(Gradient, g) for bucket, g in store.grads.items()}
    return trainer


def _exact(f: LayerFunctions) -> LayerFunctions:
    def values(p: dict) -> dict:
        return {name: _as(Value, a) for name, a in p.items()}

    return LayerFunctions(
        lambda x, p, **more: f.forward(_as(Value, x), values(p), **more),
        lambda dy, cache, p: f.backward_input(_as(Gradient, dy), cache, values(p)),
        f.backward_weight,
        lambda dy, cache, p: f.backward(_as(Gradient, dy), cache, values(p)),
    )


def _as(kind: type, a: Any) -> Any:
    """The same memory, seen as that kind; tokens stay what they are."""
    return np.asarray(a).view(kind) if a is not None and a.dtype == np.float64 else a
