"""What goes along a row: norms and the loss, a warp or a block of threads for each row.

By CuPy's own reductions a norm is seven passes over memory, and its sums are slow: a block of
threads for a row that a warp adds up.  Here it is one.  Sums are made in float32 (float64 of
float64), whatever is read and written.

Source: Ba, Kiros, Hinton 2016, section 3 (norms); one pass over the logits: Milakov and
Gimelshein 2018, algorithm 3
"""

from functools import cache

import numpy as np

from ..backend import xp

WARP, ROWS = 32, 8  # threads that share a row, rows of a block
LONG, THREADS = 1024, 256  # a longer row of logits has a block of threads
BFLOAT16 = """
struct T {  // a bfloat16 is the upper half of a float
  unsigned short bits;
  __device__ operator float() const { return __uint_as_float((unsigned)bits << 16); }
  __device__ void operator=(float x) {
    const unsigned u = __float_as_uint(x);
    bits = x != x ? 0x7fc0 : (u + 0x7fff + (u >> 16 & 1)) >> 16;  // to nearest, ties to even
  }
};
"""
CODE = """
__device__ W sum_of_warp(W x) {
  for (int step = 16; step; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

extern "C" __global__ void norm_forward(const T* x, const T* g, const T* b, T* y, T* xhat, W* rstd,
                                        int rows, int D, W eps, int centred) {
  const int row = blockIdx.x * blockDim.y + threadIdx.y;
  if (row >= rows) return;
  const long long start = (long long)row * D;
  W total = 0;
  for (int j = threadIdx.x; centred && j < D; j += 32) total += W(x[start + j]);
  const W mean = sum_of_warp(total) / D;
  total = 0;
  for (int j = threadIdx.x; j < D; j += 32) {
    const W c = W(x[start + j]) - mean;
    total += c * c;
  }
  const W r = 1 / sqrt(sum_of_warp(total) / D + eps);
  for (int j = threadIdx.x; j < D; j += 32) {
    const W n = (W(x[start + j]) - mean) * r;
    xhat[start + j] = n;
    y[start + j] = centred ? n * W(g[j]) + W(b[j]) : n * W(g[j]);
  }
  if (threadIdx.x == 0) rstd[row] = r;
}

extern "C" __global__ void norm_backward(const T* dy, const T* g, const T* xhat, const W* rstd,
                                         T* dx, int rows, int D, int centred) {
  const int row = blockIdx.x * blockDim.y + threadIdx.y;
  if (row >= rows) return;
  const long long start = (long long)row * D;
  W along = 0, mean = 0;
  for (int j = threadIdx.x; j < D; j += 32) {
    const W d = W(dy[start + j]) * W(g[j]);
    along += d * W(xhat[start + j]);
    mean += d;
  }
  along = sum_of_warp(along) / D;
  mean = sum_of_warp(mean) / D;
  if (!centred) mean = 0;
  for (int j = threadIdx.x; j < D; j += 32) {
    const W d = W(dy[start + j]) * W(g[j]);
    dx[start + j] = (d - mean - W(xhat[start + j]) * along) * rstd[row];
  }
}

extern "C" __global__ void log_sum_exp(const T* x, W* out, int V) {
  __shared__ W tops[32], totals[32];
  const long long start = (long long)blockIdx.x * V;
  const W none = -1e30;
  W top = none, total = 0;
  for (int j = threadIdx.x; j < V; j += blockDim.x) {
    const W v = x[start + j];
    if (v > top) {
      total *= exp(top - v);
      top = v;
    }
    total += exp(v - top);
  }
  const int warps = blockDim.x / 32, lane = threadIdx.x % 32;
  for (int of_warps = 0; of_warps < 2; ++of_warps) {  // of each warp, then of the block
    if (of_warps) {
      if (lane == 0) { tops[threadIdx.x / 32] = top; totals[threadIdx.x / 32] = total; }
      __syncthreads();
      top = lane < warps ? tops[lane] : none;
      total = lane < warps ? totals[lane] : W(0);
    }
    for (int step = 16; step; step /= 2) {
      const W other = __shfl_xor_sync(0xffffffffu, top, step);
      const W more = __shfl_xor_sync(0xffffffffu, total, step);
      const W larger = top > other ? top : other;
      total = total * exp(top - larger) + more * exp(other - larger);
      top = larger;
    }
  }
  if (threadIdx.x == 0) out[blockIdx.x] = top + log(total);
}

extern "C" __global__ void softmax_minus_target(const T* x, const W* log_sum,
                                                const long long* targets, T* dx, int V, W scale) {
  const long long start = (long long)blockIdx.x * V;
  const W from = log_sum[blockIdx.x];
  const int target = targets[blockIdx.x];
  for (int j = threadIdx.x; j < V; j += blockDim.x)
    dx[start + j] = (exp(W(x[start + j]) - from) - (j == target ? W(1) : W(0))) * scale;
}
"""


def sums_dtype(dtype) -> np.dtype:
    """What numbers of a dtype are added up in."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


@cache
def kernel(name: str, dtype: np.dtype):
    wide = "double" if dtype == np.float64 else "float"
    types = BFLOAT16 if dtype.name == "bfloat16" else f"typedef {wide} T;"
    return xp.RawKernel(f"typedef {wide} W;{types}{CODE}", name)


def norm_forward(x, g, b, eps: float):
    """y = g x̂ + b and x̂ like x, and 1/σ (..., 1); without ``b``, RMS norm."""
    x, D, W = xp.ascontiguousarray(x), x.shape[-1], sums_dtype(x.dtype)
    rows = x.size // D
    y, xhat, rstd = xp.empty_like(x), xp.empty_like(x), xp.empty((*x.shape[:-1], 1), W)
    shifts = g if b is None else b
    numbers = np.int32(rows), np.int32(D), W.type(eps), np.int32(b is not None)
    _run_warps("norm_forward", rows, x.dtype, (x, g, shifts, y, xhat, rstd, *numbers))
    return y, xhat, rstd


def norm_backward(dy, g, xhat, rstd, centred: bool):
    """dx = 1/σ (dx̂ − mean(dx̂) − x̂ mean(dx̂ x̂)) with dx̂ = g dy; RMS norm is not centred."""
    dy, D = xp.ascontiguousarray(dy), dy.shape[-1]
    dx, rows = xp.empty_like(dy), dy.size // D
    numbers = np.int32(rows), np.int32(D), np.int32(centred)
    _run_warps("norm_backward", rows, dy.dtype, (dy, g, xhat, rstd, dx, *numbers))
    return dx


def log_sum_exp(x):
    """log Σ_v e^x_v of x (..., V): (..., 1)."""
    x, W = xp.ascontiguousarray(x), sums_dtype(x.dtype)
    out = xp.empty((*x.shape[:-1], 1), W)
    args = (x, out, np.int32(x.shape[-1]))
    kernel("log_sum_exp", x.dtype)((out.size,), (_threads(x),), args)
    return out


def softmax_minus_target(x, log_sum, targets, scale: float):
    """(softmax(x) − onehot(target)) scale, of x (..., V)."""
    dx = xp.empty_like(x)
    args = (x, log_sum, targets, dx, np.int32(x.shape[-1]), log_sum.dtype.type(scale))
    kernel("softmax_minus_target", x.dtype)((log_sum.size,), (_threads(x),), args)
    return dx


def _threads(x) -> int:
    return THREADS if x.shape[-1] > LONG else WARP


def _run_warps(name: str, rows: int, dtype, args: tuple) -> None:
    kernel(name, dtype)((-(-rows // ROWS),), (WARP, ROWS), args)
