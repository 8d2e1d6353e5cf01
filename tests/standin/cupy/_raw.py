"""``RawKernel``: CUDA C++ by hand, its blocks run one after the other, its threads in turns.

Each thread of a block is a fiber that runs until it must wait: for its warp (shuffles) or for its
block (``__syncthreads``).  Threads that wait for one another for ever, or an argument that is not
of the parameter's size, are errors; on a device both go wrong by luck.
"""

import ctypes

import numpy as np

from ._array import ndarray
from ._compiler import compiled
from ._queue import queue

HEAD = r"""
#include <setjmp.h>
#include <ucontext.h>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <utility>
using namespace std;
struct dim3 { unsigned x, y, z; };
static dim3 threadIdx, blockIdx, blockDim, gridDim;
#define __global__
#define __device__
#define __shared__ static
#define __restrict__ __restrict
static const int warpSize = 32;

enum State { NEW, READY, AT_WARP, AT_BLOCK, DONE };
static const int MOST = 1024, STACK = 1 << 16;
static ucontext_t fibers[MOST];  // to begin; after that jumps are faster
static jmp_buf scheduler, places[MOST];
static State states[MOST];
static char (*stacks)[STACK], slots[MOST][8];
static int now;
static void wait_in(State state) {
  states[now] = state;
  if (!_setjmp(places[now])) _longjmp(scheduler, 1);
}
static void __syncthreads() { wait_in(AT_BLOCK); }
static void __syncwarp(unsigned mask = ~0u) { wait_in(AT_WARP); }
template <class V> static V exchanged(V x, int lane) {
  memcpy(slots[now], &x, sizeof x);
  wait_in(AT_WARP);
  memcpy(&x, slots[now / 32 * 32 + lane % 32], sizeof x);
  wait_in(AT_WARP);  // nobody writes before all have read
  return x;
}
template <class V> static V __shfl_xor_sync(unsigned, V x, int mask) {
  return exchanged(x, now % 32 ^ mask);
}
template <class V> static V __shfl_sync(unsigned, V x, int lane) { return exchanged(x, lane); }
static float __uint_as_float(unsigned u) { float f; memcpy(&f, &u, 4); return f; }
static unsigned __float_as_uint(float f) { unsigned u; memcpy(&u, &f, 4); return u; }
"""
TAIL = r"""
static void** arguments;
template <class... A, size_t... I>
static void call(void (*kernel)(A...), index_sequence<I...>) {
  kernel(*(remove_reference_t<A>*)arguments[I]...);
}
template <class... A> static bool fits(void (*)(A...), const int* sizes, int n) {
  const int wanted[] = {(int)sizeof(A)...};
  return n == (int)sizeof...(A) && !memcmp(wanted, sizes, sizeof wanted);
}
template <class... A> static void call_all(void (*kernel)(A...)) {
  call(kernel, index_sequence_for<A...>());
}
static void fiber() {
  call_all(KERNEL);
  states[now] = DONE;
  _longjmp(scheduler, 1);
}

static bool all_wait(int from, int to, State state) {  // of those that are not done
  bool some = false;
  for (int t = from; t < to; ++t) {
    if (states[t] != state && states[t] != DONE) return false;
    some |= states[t] == state;
  }
  return some;
}
static bool release(int from, int to, State state) {
  if (!all_wait(from, to, state)) return false;
  for (int t = from; t < to; ++t) if (states[t] == state) states[t] = READY;
  return true;
}
static bool run_block(int threads) {
  for (int t = 0; t < threads; ++t) {
    getcontext(&fibers[t]);
    fibers[t].uc_stack.ss_sp = stacks[t];
    fibers[t].uc_stack.ss_size = STACK;
    makecontext(&fibers[t], fiber, 0);
    states[t] = NEW;
  }
  for (;;) {
    for (now = 0; now < threads; ++now) {
      if (states[now] > READY || _setjmp(scheduler)) continue;
      const unsigned x = now % blockDim.x, rest = now / blockDim.x;
      threadIdx = {x, rest % blockDim.y, rest / blockDim.y};
      if (states[now] == READY) _longjmp(places[now], 1);
      setcontext(&fibers[now]);
    }
    bool moved = release(0, threads, AT_BLOCK), done = true;
    for (int w = 0; w < threads; w += 32) moved |= release(w, min(w + 32, threads), AT_WARP);
    for (int t = 0; t < threads; ++t) done &= states[t] == DONE;
    if (done) return true;
    if (!moved) return false;
  }
}
extern "C" int launch(const unsigned* grid, const unsigned* block, void** args,
                      const int* sizes, int n) {
  if (!fits(KERNEL, sizes, n)) return 1;
  if (!stacks) stacks = (char(*)[STACK])malloc(sizeof *stacks * MOST);
  arguments = args;
  gridDim = {grid[0], grid[1], grid[2]}; blockDim = {block[0], block[1], block[2]};
  for (unsigned z = 0; z < gridDim.z; ++z)
    for (unsigned y = 0; y < gridDim.y; ++y)
      for (unsigned x = 0; x < gridDim.x; ++x) {
        blockIdx = {x, y, z};
        if (!run_block(block[0] * block[1] * block[2])) return 2;
      }
  return 0;
}
"""
ERRORS = {
    1: "{}: an argument is not of the size of its parameter, or one is missing: {}",
    2: "{}: threads of a block wait for one another ({})",
}


class RawKernel:
    def __init__(self, code: str, name: str, options=(), backend="nvrtc", **kwargs):
        self.code, self.name, self.options = code, name, options

    def __call__(self, grid, block, args, *, shared_mem=0) -> None:
        queue.work()
        plain = [_plain(a) for a in args]
        sizes = (ctypes.c_int * len(plain))(*(a.nbytes for a in plain))
        pointers = (ctypes.c_void_p * len(plain))(*(a.ctypes.data for a in plain))
        shape = [(ctypes.c_uint * 3)(*(*x, 1, 1)[:3]) for x in (grid, block)]
        assert np.prod(block) <= 1024, "a block has at most 1024 threads"
        library = compiled(f"{HEAD}{self.code}\n#define KERNEL {self.name}\n{TAIL}")
        if wrong := library.launch(*shape, pointers, sizes, len(plain)):
            raise RuntimeError(ERRORS[wrong].format(self.name, [a.dtype.name for a in plain]))


def _plain(a) -> np.ndarray:
    """What lies in the argument's place: an array's address, or a number."""
    if isinstance(a, ndarray):
        return np.array(a._a.ctypes.data, np.uint64)
    if isinstance(a, np.ndarray):
        raise TypeError("a numpy.ndarray as a kernel's parameter: pass a cupy.ndarray")
    return np.asarray(a)
