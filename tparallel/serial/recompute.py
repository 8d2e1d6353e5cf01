"""Compute in backward what forward did not keep: memory for time.

``full`` keeps a block's input and runs its forward again; ``selective`` keeps all but attention's
T × T probabilities, which are large and cheap to make again from q and k.  Both are wrappers: the
layers do not know.

Extra FLOPs per block:  full 2 B T (4 D² + 2 D F) + 4 B T² D;  selective 2 B T² D
                        (of GPT-2's shapes)
Extra wire:             full repeats the sums of forward;  selective none
Source:                 Chen et al. 2016; Korthikanti et al. 2022, sections 4.1 and 5
"""

from collections.abc import Callable

from ..kernels import scores_again
from .model import LayerFunctions


def full(f: LayerFunctions) -> LayerFunctions:
    def forward(x, p, at):
        y, _ = f.forward(x, p, at=at)
        return y, (x, at)

    def again(cache, p):
        x, at = cache
        return f.forward(x, p, at=at)[1]

    return _before_backward(f, forward, again)


def selective(f: LayerFunctions) -> LayerFunctions:
    def forward(x, p, at):
        y, (norm1, (x, (q, kv, _, drop), *attn), *rest) = f.forward(x, p, at=at)
        return y, (norm1, (x, (q, kv, drop), *attn), *rest)

    def again(cache, p):
        norm1, (x, (q, kv, drop), *attn), *rest = cache
        return norm1, (x, (q, kv, scores_again(q, kv, drop), drop), *attn), *rest

    return _before_backward(f, forward, again)


def _before_backward(f: LayerFunctions, forward: Callable, again: Callable) -> LayerFunctions:
    return f._replace(
        forward=forward,
        backward_input=lambda dy, cache, p: f.backward_input(dy, again(cache, p), p),
        backward=lambda dy, cache, p: f.backward(dy, again(cache, p), p),
    )


RECOMPUTE: dict[str, Callable[[LayerFunctions], LayerFunctions]] = {
    "none": lambda f: f,
    "selective": selective,
    "full": full,
}
