"""``ElementwiseKernel`` and ``ReductionKernel``: their own C++, compiled for this machine.

What runs is the text that a CUDA compiler would be given, one element after the other, so that a
wrong formula is found here.  What only a device can show (registers, races, its compiler) is not.
Needs a C++ compiler.
"""

import ctypes

import numpy as np

from ._array import ndarray, wrapped
from ._compiler import compiled
from ._queue import queue

CTYPES = {
    "float64": "double", "float32": "float", "bool": "bool", "int32": "int", "int64": "long long",
    "uint64": "unsigned long long", "uint8": "unsigned char", "bfloat16": "bfloat16",
}  # fmt: skip
HEAD = r"""
#include <cmath>
#include <cstring>
#include <algorithm>
using namespace std;
class bfloat16 {  // with the conversions that CuPy's has, and no others
  unsigned short bits;
 public:
  bfloat16() = default;
  bfloat16(float x) {
    unsigned u;
    memcpy(&u, &x, 4);
    bits = x != x ? 0x7fc0 : (u + 0x7fff + (u >> 16 & 1)) >> 16;
  }
  explicit bfloat16(bool x) : bfloat16(float(x)) {}
  explicit bfloat16(double x) : bfloat16(float(x)) {}
  explicit bfloat16(int x) : bfloat16(float(x)) {}
  explicit bfloat16(unsigned x) : bfloat16(float(x)) {}
  explicit bfloat16(long long x) : bfloat16(float(x)) {}
  explicit bfloat16(unsigned long long x) : bfloat16(float(x)) {}
  operator float() const { unsigned u = bits << 16; float x; memcpy(&x, &u, 4); return x; }
  bfloat16& operator=(const bfloat16&) = default;
  template <typename T> bfloat16& operator=(const T& x) { return *this = static_cast<bfloat16>(x); }
};
"""


class _Parameter:
    """``T x`` or ``raw float64 y``."""

    def __init__(self, text: str):
        *raw, self.type, self.name = text.split()
        if raw not in ([], ["raw"]) or self.name in ("i", "n"):
            raise ValueError(f"not a parameter: {text}")
        self.raw = bool(raw)


class _Kernel:
    """What the two kinds share: parameters, their types, and where they lie."""

    def __init__(self, in_params: str, out_params: str):
        self.ins = [_Parameter(p) for p in in_params.split(",") if p.strip()]
        self.outs = [_Parameter(p) for p in out_params.split(",") if p.strip()]

    def types(self, arrays: list) -> dict[str, np.dtype]:
        """T and its like, from the arrays; CuPy refuses two dtypes for one letter."""
        found: dict = {}
        for p, a in zip([*self.ins, *self.outs], arrays):
            if isinstance(a, np.ndarray):
                raise TypeError("Unsupported type <class 'numpy.ndarray'>")
            if isinstance(a, ndarray):
                wanted = found.setdefault(p.type, a.dtype) if len(p.type) == 1 else p.type
                if a.dtype != wanted:
                    raise TypeError(f"Type is mismatched. {p.name} {a.dtype} {wanted}")
        return found

    def declared(self, types: dict) -> str:
        return "".join(f"typedef {CTYPES[t.name]} {letter};\n" for letter, t in types.items())

    def dtype(self, p: _Parameter, types: dict) -> np.dtype:
        return types.get(p.type) or np.dtype(p.type)

    def ctype(self, p: _Parameter, types: dict) -> str:
        return p.type if p.type in types else CTYPES[np.dtype(p.type).name]


class ElementwiseKernel(_Kernel):
    def __init__(self, in_params, out_params, operation, name="kernel", preamble=""):
        super().__init__(in_params, out_params)
        self.operation, self.preamble = operation, preamble

    def __call__(self, *args):
        queue.work()
        types, given = self.types(list(args)), list(args[len(self.ins) :])
        spread = [a for p, a in zip(self.ins, args) if isinstance(a, ndarray) and not p.raw]
        shape = np.broadcast_shapes(*(a.shape for a in (*spread, *given)))
        if any(out.shape != shape for out in given):
            raise ValueError("Out shape is mismatched")
        held = [self._held(p, a, shape, types) for p, a in zip(self.ins, args)]
        outs = [a._a.copy("C") for a in given]
        outs = outs or [np.empty(shape, self.dtype(p, types)) for p in self.outs]
        lines = []
        for k, p in enumerate([*self.ins, *self.outs]):
            t = self.ctype(p, types)
            index = "_i" if k >= len(self.ins) or isinstance(args[k], ndarray) else "0"
            const = "const " if k < len(self.ins) else ""
            pointer = f"(({t}*)_p[{k}])"
            if p.raw:
                lines.append(f"{t}* {p.name} = {pointer};")
            else:
                lines.append(f"{const}{t}& {p.name} = {pointer}[{index}];")
        body = f"for (long long _i = 0; _i < _n; ++_i) {{ {' '.join(lines)} {self.operation}; }}"
        _run(HEAD + self.preamble + self.declared(types), body, int(np.prod(shape)), 0, held + outs)
        for target, result in zip(given, outs):
            target._a[...] = result
        results = given or [wrapped(a) for a in outs]
        return results[0] if len(results) == 1 else tuple(results)

    def _held(self, p: _Parameter, a, shape: tuple, types: dict) -> np.ndarray:
        """An input as the loop reads it: of the whole shape, as it is (raw), or one number."""
        if not isinstance(a, ndarray):
            return np.array(a, self.dtype(p, types))
        return a._a if p.raw else np.ascontiguousarray(np.broadcast_to(a._a, shape))


class ReductionKernel(_Kernel):
    def __init__(
        self, in_params, out_params, map_expr, reduce_expr, post_map_expr, identity, name="kernel"
    ):
        super().__init__(in_params, out_params)
        self.map, self.reduce = map_expr, reduce_expr
        self.post, self.identity = post_map_expr, identity

    def __call__(self, *args, axis=None, keepdims=False):
        queue.work()
        types = self.types(list(args))
        arrays = np.broadcast_arrays(*(a._a for a in args))
        ndim = arrays[0].ndim
        axes = range(ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
        axes = sorted(a % ndim for a in axes)
        kept = [a for a in range(ndim) if a not in axes]
        held = [np.ascontiguousarray(a.transpose(*kept, *axes)) for a in arrays]
        (out,) = self.outs
        shape, t = [arrays[0].shape[a] for a in kept], self.ctype(out, types)
        result = np.empty(shape, self.dtype(out, types))
        inputs = ""
        for k, p in enumerate(self.ins):
            kind = self.ctype(p, types)
            inputs += f"const {kind}& {p.name} = (({kind}*)_p[{k}])[_o * _m + _j]; "
        body = (
            f"for (long long _o = 0; _o < _n; ++_o) {{ {t} _total = {self.identity};\n"
            f"for (long long _j = 0; _j < _m; ++_j) {{ {inputs}\n"
            f"const {t} a = _total, b = {self.map}; _total = {self.reduce}; }}\n"
            f"const {t} a = _total; {t}& {out.name} = (({t}*)_p[{len(held)}])[_o]; {self.post}; }}"
        )
        count = arrays[0].size // max(1, result.size)
        _run(HEAD + self.declared(types), body, result.size, count, [*held, result])
        return wrapped(np.expand_dims(result, tuple(axes)) if keepdims else result)


def _run(head: str, body: str, n: int, m: int, arrays: list) -> None:
    pointers = (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))
    source = f'{head}extern "C" void run(long long _n, long long _m, void** _p) {{\n{body}\n}}\n'
    compiled(source).run(ctypes.c_longlong(n), ctypes.c_longlong(m), pointers)
