"""What "equal" means, for every comparison in this project.

The error of a tensor is max|a − b| / max|b|, b the reference: relative to the tensor's own
scale, so that a wrong entry counts wherever it stands and a small tensor is not hidden by a
large one.

One tensor has no scale of its own.  A key bias adds the same score to a whole row of softmax,
which cancels: its true gradient is zero, and what is computed is rounding.  It is measured
against the largest value of the whole model instead.
"""

from typing import Any

import numpy as np

from ..backend import to_host

Tree = dict[str, dict[str, Any]]  # {layer: {name: array}}, as parameters and gradients are kept


def relative_error(a: Any, b: Any, scale: float | None = None) -> float:
    """max|a − b| / scale, where scale is max|b| unless given; 0 where a and b are both all zero.

    Shapes:  a and b alike, any; scalars are allowed
    Dtypes:  any; the difference is taken in float64
    Errors:  ValueError if the shapes differ.  A value that is not finite, in a or in b, is an
             infinite error, and so is a non-zero ``a`` where b (or the scale) is all zero.
    """
    a, b = _float64(a), _float64(b)
    if a.shape != b.shape:
        raise ValueError(f"only arrays of one shape are compared: {a.shape} and {b.shape}.")
    scale = _largest(b) if scale is None else scale
    if not (np.isfinite(a).all() and np.isfinite(b).all() and np.isfinite(scale)):
        return float("inf")
    difference = _largest(a - b)
    if difference == 0:
        return 0.0
    return difference / scale if scale else float("inf")


def worst_error(tree: Tree, reference: Tree) -> tuple[float, str]:
    """The largest error of any tensor, and that tensor's name: ``(3e-16, "block.1.attn.w_out")``.

    The two parts of ``b_kv`` (2, Hkv, K) are measured apart, ``block.1.attn.b_kv[k]`` against
    the largest value in ``reference``.  Errors: ValueError if names or shapes differ.
    """
    ours, theirs = _tensors(tree), _tensors(reference)
    if ours.keys() != theirs.keys():
        unmatched = ", ".join(sorted(ours.keys() ^ theirs.keys()))
        raise ValueError(f"both trees must hold the same tensors: only one holds {unmatched}.")
    largest = max(_largest(b) for b in theirs.values())
    errors = {
        name: relative_error(ours[name], b, largest if name.endswith("b_kv[k]") else None)
        for name, b in theirs.items()
    }
    worst = max(errors, key=errors.__getitem__)
    return errors[worst], worst


def _tensors(tree: Tree) -> dict[str, np.ndarray]:
    """{"block.1.attn.w_kv": array}, with ``b_kv`` in its two parts."""
    out: dict[str, np.ndarray] = {}
    for layer, p in tree.items():
        for name, a in p.items():
            full = f"{layer}.{name}"
            if name.endswith("b_kv"):
                out |= {f"{full}[{part}]": x for part, x in zip("kv", _float64(a))}
            else:
                out[full] = _float64(a)
    return out


def _float64(a: Any) -> np.ndarray:
    return np.asarray(to_host(a), np.float64)


def _largest(a: np.ndarray) -> float:
    return float(np.max(np.abs(a), initial=0.0))
