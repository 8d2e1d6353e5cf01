"""The border of the region that is cut over tp: f where a layer is entered, g where it is left.

In the region a rank computes some heads, columns or vocabulary rows for every token.  Forward of f
brings it the tokens, forward of g finishes the partial sums.  Each one's backward is the other's
forward: a copy to n ranks is undone by the sum of n gradients, a sum of n parts by a copy.

                          f forward    f backward       g forward        g backward
    tensor parallel       -            all_reduce       all_reduce       -
    sequence parallel     all_gather   reduce_scatter   reduce_scatter   all_gather

Under sequence parallelism everything outside the region (norms, residuals, dropout) exists once:
each tp rank holds T/tp of the tokens.  An all_reduce *is* a reduce_scatter and an all_gather, so
that the bytes are the same.  A parameter outside then has only its rank's tokens' share of its
gradient; ``finish`` sums those.

Source: Shoeybi et al. 2019, section 3 (f and g); Korthikanti et al. 2022, section 4.2.2 (g and ḡ)
"""

from collections.abc import Callable

from ..backend import xp


class TensorParallel:
    """f and g of plain tensor parallelism; ``shared``, the ranks that hold the same key/value head.

    ``overlap``: f's backward sum is only posted; whoever needs it awaits it.
    """

    def __init__(self, axis, shared=None, overlap: bool = True):
        self.axis, self.shared, self.overlap = axis, shared, overlap
        self.rank, self.size = axis.rank, axis.size

    def enter(self, x, *, what: str):
        """f: x as the region needs it, (B, T, D)."""
        return x

    def enter_backward(self, dx, *, what: str):
        """f backward: dx (B, T, D) partial over tp -> a pending sum; ``.wait()`` for the array."""
        return self._posted(self.axis.start_all_reduce(dx, what=what))

    def leave(self, y, *, what: str):
        """g: y (B, T, D) partial over tp -> the sum."""
        return self.axis.all_reduce(y, what=what)

    def leave_backward(self, dy, *, what: str):
        """g backward: dy as the region needs it, (B, T, D)."""
        return dy

    def keep(self, x):
        """What the cache holds of an input that has entered."""
        return x

    def again(self, x, *, what: str):
        """From what the cache holds, the input once more, pending."""
        return Later(lambda: x, x)

    def tokens(self, T: int) -> slice:
        """The positions that this rank holds outside the region."""
        return slice(0, T)

    def partial(self, name: str) -> bool:
        """Does a rank have only its share of the gradient of this replicated parameter?"""
        return False

    def finish(self, grads: dict) -> dict:
        """Sum the gradients of which every rank has a share: one message per axis and layer."""
        sum_over(self.axis, grads, [n for n in grads if self.partial(n)], what="norm grads")
        if self.shared:
            sum_over(self.shared, grads, [n for n in grads if "kv" in n], what="kv grads")
        return grads

    def _posted(self, pending):
        if not self.overlap:
            pending.wait()
        return pending


class SequenceParallel(TensorParallel):
    """f and g where each rank holds T/tp of the tokens outside the region.

    ``regather``: the cache keeps this rank's tokens only, and backward gathers them once more
    (the paper's choice: 1/tp of the memory for half a sum more on the wire, which overlaps).
    """

    def __init__(self, axis, shared=None, overlap: bool = True, regather: bool = False):
        super().__init__(axis, shared, overlap)
        self.regather = regather

    def enter(self, x, *, what: str):
        return self._gather(x, what).wait()

    def enter_backward(self, dx, *, what: str):
        return self._posted(self._scatter(dx, what))

    def leave(self, y, *, what: str):
        return self._scatter(y, what).wait()

    def leave_backward(self, dy, *, what: str):
        return self._gather(dy, what).wait()

    def keep(self, x):
        return x[:, self.tokens(x.shape[1])].copy() if self.regather else x

    def again(self, x, *, what: str):
        return self._posted(self._gather(x, what)) if self.regather else Later(lambda: x, x)

    def tokens(self, T: int) -> slice:
        return slice(self.rank * T // self.size, (self.rank + 1) * T // self.size)

    def partial(self, name: str) -> bool:
        return "norm" in name

    def _gather(self, x, what: str):
        """(B, T/tp, D) -> (B, T, D); the verbs join and cut along dim 0, so tp goes through it."""
        B, t, D = x.shape
        parts = xp.empty((self.size * B, t, D), x.dtype)
        pending = self.axis.start_all_gather(xp.ascontiguousarray(x), what=what, out=parts)

        def finish():
            pending.wait()
            return parts.reshape(-1, B, t, D).swapaxes(0, 1).reshape(B, -1, D)

        return Later(finish, parts)

    def _scatter(self, x, what: str):
        """(B, T, D) partial over tp -> (B, T/tp, D)."""
        B, _, D = x.shape
        parts = x.reshape(B, self.size, -1, D).swapaxes(0, 1)  # (tp, B, T/tp, D)
        parts = xp.ascontiguousarray(parts).reshape(self.size * B, -1, D)
        return self.axis.start_reduce_scatter(parts, what=what)


class Later:
    """Something to be done when it is asked for, once; ``arrays`` are what it holds till then."""

    def __init__(self, finish: Callable, *arrays):
        self.finish, self.arrays, self.done = finish, arrays, False

    def wait(self):
        if not self.done:
            self.result, self.done = self.finish(), True
            self.arrays = (self.result,)
            del self.finish
        return self.result


def sum_over(axis, grads: dict, names: list[str], *, what: str) -> None:
    """Replace the named gradients by their sums over the axis, in one message."""
    if not names:
        return
    flat = xp.concatenate([grads[name].reshape(-1) for name in names])
    flat = axis.all_reduce(flat, what=what)
    at = 0
    for name in names:
        size = grads[name].size
        grads[name] = flat[at : at + size].reshape(grads[name].shape)
        at += size
