"""Bugs of the program that one process runs: every layout has them too, and is equal to it."""

from ... import kernels
from ...config.presets import LLAMA
from .bug import NUMPITRON, bug

_RESIDUAL = "    dx += dy  # again the residuals' own gradients, here\n"

# The same bug in the version of the heads that goes through its scores in blocks.
BLOCK_SCALE = (
    [("kernels.attention:_scale", "sqrt(q.shape[-1])", "sqrt(q.shape[-1] * q.shape[-2])")]
    if kernels.name != "plain"
    else []
)

BUGS = (
    bug(
        "residual-gradient",
        "backward forgets the gradient that passes beside the mlp",
        NUMPITRON,
        {},
        "slopes",
        ("serial.block:block_backward", _RESIDUAL, ""),
    ),
    bug(
        "scale-root-d",
        "scores are divided by √D, the model's width, not by √K, the head's",
        NUMPITRON,
        {},
        "definition",
        ("serial.heads:probabilities", "1 / sqrt(K)", "1 / sqrt(K * q.shape[1] * q.shape[2])"),
        (
            "serial.heads:heads_backward",
            "1 / sqrt(q.shape[-1])",
            "1 / sqrt(q.shape[-1] * q.shape[1] * q.shape[2])",
        ),
        *BLOCK_SCALE,
    ),
    bug(
        "last-id-serial",
        "the last id of the vocabulary is scored as the one before it, on one process too",
        NUMPITRON,
        {},
        "definition",
        (
            "serial.loss:every_row",
            "targets.reshape(-1)",
            "xp.minimum(targets.reshape(-1), targets.max() - 1)",
        ),
    ),
    bug(
        "rotary-pairs",
        "rotary frequencies lie in the order of pairs of neighbours, but pairs are of two halves",
        "raiyanyahya/how-to-train-your-gpt/pull/7 rasbt/LLMs-from-scratch/pull/747",
        LLAMA | {"K": 8},
        "definition",
        (
            "serial.rope:frequencies",
            "np.arange(c.K // 2)",
            "(np.arange(c.K // 2) // 2)",
        ),
    ),
    bug(
        "recompute-drops-anew",
        "recomputation in backward draws other dropout than forward did",
        "allenai/OLMo-core/pull/828",
        {"dropout": 0.1, "recompute": "full"},
        "gradients",
        (
            "serial.recompute:full",
            "return f.forward(x, p, at=at)[1]",
            "return f.forward(x, p, at=at.of(1))[1]",
        ),
    ),
)
