"""The serial transformer: what every parallel method must reproduce, and why we trust it.

You will see one small transformer made, run forward with the shape of every step, run backward
by hand, checked against finite differences, and trained on real text for forty steps.  No rank
but this one exists; read `tparallel/serial/` beside it, one file per step.

    .venv/bin/python tutorials/01_serial_transformer.py                              (1 second)
"""

# %% The model is a dict of dicts
# Every layer's parameters are a dict of named arrays, the model is a dict of layers.  A
# parameter's first value depends on its name and the seed alone, never on who asks for it.

import os

from tparallel import launch

launch.limit_threads(os.environ)  # one BLAS thread: what one rank will have later

import numpy as np

from tparallel import data
from tparallel.config import ModelConfig, TrainConfig
from tparallel.serial.adamw import learning_rate
from tparallel.serial.loss import cross_entropy_backward, cross_entropy_forward
from tparallel.serial.model import LAYERS, kind, layer_view, layers_of, model_forward
from tparallel.serial.parameters import count
from tparallel.serial.train import initial_params, loss_and_grads, train_step, zeros_like

model = ModelConfig(L=2, D=32, H=4, T=32, V=256)
train = TrainConfig(dtype="float64", init="random", global_batch=4)
params = initial_params(model, train)

print(f"{count(model):,} parameters in {len(params)} layers; those of block.0:")
for name, w in params["block.0"].items():
    print(f"    {name:12} {w.shape}")

# %% Forward: tokens -> embed -> blocks -> head -> loss
# Each layer returns its output and a cache: the activations that backward will need.  The cache
# never holds parameters; under ZeRO-3 that would keep every gathered weight alive.

corpus = data.load()
tokens, targets = corpus.batch(step=0, global_batch=train.global_batch, T=model.T, seed=0)

x, caches = tokens, {}
print(f"\n{corpus.name}: {corpus.size:,} bytes\n{'tokens':10} {x.shape}")
for layer in layers_of(params):
    x, caches[layer] = LAYERS[kind(layer)].forward(x, layer_view(params, layer))
    print(f"{layer:10} {x.shape}")
loss, cache = cross_entropy_forward(x, targets, count=targets.size)
print(f"loss       {loss:.6f} nats per token")

# %% Backward: the same layers from the last to the first, in two halves
# `backward_input` gives dx, for which the layer below waits.  `backward_weight` gives the
# parameters' gradients, for which only the optimizer waits: it can be done later, and the
# zero-bubble schedules do so.

dx = cross_entropy_backward(cache)
grads = {}
for layer in reversed(layers_of(params)):
    f = LAYERS[kind(layer)]
    dx, wcache = f.backward_input(dx, caches.pop(layer), layer_view(params, layer))
    grads[layer] = f.backward_weight(wcache)
print(f"\n{sum(g.size for p in grads.values() for g in p.values()):,} gradients")

# %% Is it right?  Ask mathematics
# Move one parameter a little along a random direction: the loss must change by gradient ·
# direction.  In float64 the two agree to many digits, or the backward is wrong.  A parallel run
# that equals a wrong serial one proves nothing, so this comes first.

rng = np.random.default_rng(0)
worst = 0.0
for layer, p in params.items():
    for name, w in p.items():
        direction, h = rng.normal(size=w.shape), 1e-6
        w += h * direction
        up = loss_and_grads(params, tokens, targets)[0]
        w -= 2 * h * direction
        down = loss_and_grads(params, tokens, targets)[0]
        w += h * direction
        by_hand = float((grads[layer][name] * direction).sum())
        error = abs((up - down) / (2 * h) - by_hand) / max(abs(by_hand), 1e-3)
        worst = max(worst, error)
print(f"\nfinite differences against backward: worst relative error {worst:.0e} (below 1e-6)")
assert worst < 1e-6

# %% Micro-batches: the same gradient, piece by piece
# The loss divides by the number of tokens of the *global* batch, so the pieces simply add up:
# sum, never average.  Pipelines and data parallelism rely on this line.

whole = loss_and_grads(params, tokens, targets, microbatches=1)[1]
pieces = loss_and_grads(params, tokens, targets, microbatches=4)[1]
far = max(abs(whole[k][n] - pieces[k][n]).max() for k in whole for n in whole[k])
print(f"\none batch against four micro-batches: largest difference {far:.0e}")
assert far < 1e-12

# %% Training: forward, backward, clip, AdamW
# From a real start now (small weights), in float32, on the reference text of this Python.

train = TrainConfig(steps=40, warmup=10, lr=5e-3, global_batch=8)
params = initial_params(model, train)
moments = zeros_like(params), zeros_like(params)
print("\nstep  loss    gradient norm   learning rate")
for step in range(train.steps):
    tokens, targets = corpus.batch(step, train.global_batch, model.T, train.seed)
    loss, norm = train_step(params, moments, tokens, targets, step, train, microbatches=2)
    if step % 10 == 0 or step == train.steps - 1:
        print(f"{step:4}  {loss:.4f}  {norm:.4f}          {learning_rate(step, train):.1e}")

# %% How good is it, on text that it has not seen?

tokens, targets = corpus.validation(0, 8, model.T)
loss, _ = cross_entropy_forward(model_forward(tokens, params)[0], targets, targets.size)
bits = data.bits_per_byte(float(loss), targets)
print(f"\nvalidation: {loss:.4f} nats per token, {bits:.3f} bits per byte (8 for a guess)")
