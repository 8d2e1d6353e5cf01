"""The training step on one process: the ~30 lines that every parallel loop is compared with."""

from math import sqrt

from ..backend import xp
from ..config import ModelConfig, TrainConfig
from ..kernels import adamw_update, cross_entropy_backward, cross_entropy_forward
from .adamw import clip_factor, learning_rate, sgd_update
from .context import ORIGIN, Context
from .dropout import Dropout
from .model import model_backward, model_forward
from .parameters import decayed, initial, shapes


def initial_params(model: ModelConfig, train: TrainConfig) -> dict:
    """{layer: {name: array}}."""
    return {
        layer: initial(model, layer, train.seed, train.dtype, train.init) for layer in shapes(model)
    }


def zeros_like(params: dict) -> dict:
    return {layer: {n: xp.zeros_like(a) for n, a in p.items()} for layer, p in params.items()}


def loss_and_grads(params: dict, tokens, targets, microbatches: int = 1, at: Context = ORIGIN):
    """Loss in nats per token and the gradient of every parameter, over the global batch (G, T)."""
    tokens, targets = xp.asarray(tokens), xp.asarray(targets)
    grads, loss = zeros_like(params), 0.0
    rows = len(tokens) // microbatches
    for i in range(0, len(tokens), rows):
        logits, caches = model_forward(tokens[i : i + rows], params, at.from_row(i))
        part, cache = cross_entropy_forward(logits, targets[i : i + rows], count=targets.size)
        model_backward(cross_entropy_backward(cache), caches, params, grads)
        loss += part
    return float(loss), grads


def grad_norm(grads: dict) -> float:
    """√ Σ g², over every parameter: the norm before clipping."""
    return sqrt(sum(float(xp.vdot(g, g)) for p in grads.values() for g in p.values()))


def train_step(
    params,
    moments,
    tokens,
    targets,
    step: int,
    c: TrainConfig,
    microbatches: int = 1,
    at: Context = ORIGIN,
):
    """One update of ``params`` and ``moments`` (m, v), in place; returns loss and gradient norm.
    ``at`` has the constants of the architecture (``context``)."""
    at = at._replace(drop=Dropout(c.dropout).of(c.seed, step))
    loss, grads = loss_and_grads(params, tokens, targets, microbatches, at)
    norm = grad_norm(grads)
    scale, lr = clip_factor(norm, c), learning_rate(step, c)
    for layer, p in params.items():
        for name, w in p.items():
            g = grads[layer][name]
            decay = c.weight_decay if decayed(name) else 0.0
            if c.optimizer == "sgd":
                sgd_update(w, g, lr, decay, scale)
            else:
                m, v = (part[layer][name] for part in moments)
                adamw_update(w, g, m, v, step, lr, decay, c, scale)
    return loss, norm
