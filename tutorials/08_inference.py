"""Inference: prefill and decode under tensor and pipeline parallelism.

You will see why a text is read at once and written token by token, what the cache of keys and
values costs, what each new token sends over each axis and in how many messages, how a pipeline
idles unless several texts are on their way, and that a token is drawn without ever gathering the
scores of the vocabulary.  At the end, the tokens of every layout against one process.

    mpirun -n 4 .venv/bin/python -m mpi4py tutorials/08_inference.py            (15 seconds)
"""

# %% Two phases
# *Prefill* computes all tokens of the prompts at once, as training does.  *Decode* computes one
# token of each text at a time, because each is an input of the next.  Per token of a text it reads
# all weights from memory for very little arithmetic, so it is bound by memory, and, where the model
# is cut, by the latency of messages.

import os

from tparallel import launch

launch.limit_threads(os.environ)

import numpy as np
from mpi4py import MPI

from tparallel.comm.link import Link
from tparallel.comm.mesh import AXES
from tparallel.compare.asleep import meet
from tparallel.config import Layout, ModelConfig, TrainConfig, replace
from tparallel.generate import Generator, Rule
from tparallel.predict import generation
from tparallel.serial.model import model_forward
from tparallel.serial.train import initial_params
from tparallel.tell import once
from tparallel.train import Trainer

comm = MPI.COMM_WORLD
if comm.size != 4:
    raise SystemExit(f"the layouts here need four ranks; this job has {comm.size}. Use -n 4.")

model = ModelConfig(L=4, D=128, H=4, T=128, V=256)
train = TrainConfig(dtype="float64", init="random", global_batch=4)
texts = "The cat sat on the mat.", "Once", "One transformer, written by hand", "a b c"
prompts = [[*text.encode()] for text in texts]
NEW, GREEDY = 16, Rule()


def generate(layout, rule=GREEDY, cache=True, link=None, model=model, train=train):
    """What every rank of the layout found, and how many messages it sent; on all ranks."""
    part = comm.Split(comm.rank // layout.ranks, comm.rank)
    found = None
    if comm.rank < layout.ranks:  # the other ranks sleep meanwhile
        trainer = Trainer(model, train, layout, part, link, learns=False)
        asked = Generator(trainer, rule, cache)
        asked.run(prompts, 2)  # warms up
        trainer.mesh.ledger.clear()
        one, totals = asked.run(prompts, NEW), trainer.mesh.ledger.totals
        count = {a: sum(t.count for k, t in totals.items() if k.axis == a and t.wire) for a in AXES}
        found = part.gather((one, count))
        trainer.close()
    meet(comm, nap=5e-3)
    part.Free()
    return comm.bcast(found)


lengths = [len(p) for p in prompts]
once(comm, f"prefill of {sum(lengths)} tokens, and decode of one token of each text, in ms")
for cache in (True, False):
    (found, _), *_ = generate(Layout(), cache=cache)
    prefill, decode = 1e3 * found.seconds[0], 1e3 * found.seconds[1] / (NEW - 1)
    name = "with" if cache else "without"
    once(comm, f"    {name + ' a cache':22} {prefill:6.1f} {decode:6.1f}")

# %% What the cache holds
# Keys and values of every token so far, in every block: 2 K numbers for each key/value head.
# tp cuts the heads, pp the blocks, dp the texts; the closed form knows all three.

once(comm, "\nbytes of keys and values on each rank")
for layout in (Layout(), Layout(tp=4), Layout(pp=4, microbatches=4), Layout(dp=4)):
    held = [one.cache for one, _ in generate(layout)]
    once(comm, f"    {layout.name:22} {held}")
    assert held == generation.cache(model, train, layout, lengths, NEW)

# %% What a new token sends
# Over tp two sums for each block, small ones, and each must arrive before anything can go on.
# Over pp one vector to the next stage, and the chosen id back.  ZeRO-3 gathers all of the model for
# every token: its place is training, where a step has thousands of tokens for each gather.

once(comm, "\nsent for one token of each text, by the busiest rank: bytes (messages)")
for layout in (Layout(tp=4), Layout(pp=4, microbatches=4), Layout(dp=4), Layout(dp=4, zero=3)):
    ranks = generate(layout)
    predicted = generation.wire(model, train, layout, lengths, NEW)[1]
    sent = {axis: max(one.wire[1][axis] for one, _ in ranks) / (NEW - 1) for axis in AXES}
    times = {axis: max(count[axis] for _, count in ranks) / NEW for axis in AXES}
    line = "   ".join(f"{a} {sent[a]:>9,.0f} ({times[a]:.0f})" for a in AXES if sent[a])
    once(comm, f"    {layout.name:22} {line or '-'}")
    assert all([one.wire[1][axis] for one, _ in ranks] == predicted[axis] for axis in AXES)

# %% Latency
# So the time of a token under tp is messages × latency: on a simulated link of 1 ms, each sum is a
# round there and a round back.  Inside a node the latency is a thousandth of that, and tp makes
# every token faster, because each rank reads only its share of the weights.

once(comm, "\nms for a token of each text on a link of 1 Gbit/s and 1 ms")
for layout in (Layout(tp=2), Layout(pp=2, microbatches=2), Layout(dp=2)):
    ranks = generate(layout, link=Link.parse("1gbit,1ms"))
    decode = max(one.seconds[1] for one, _ in ranks)
    once(comm, f"    {layout.name:22} {1e3 * decode / (NEW - 1):6.1f}")

# %% The pipeline's idle share
# A text's next token needs its last one: with one micro-batch in flight one stage works and the
# others wait.  M micro-batches keep M of S stages busy; from M = S on all of them, but for the
# messages and what else is done between two of them.  So pp makes no token faster; it holds
# larger models, and serves more texts at once.

wide = replace(model, D=512, F=2048), replace(train, dtype="float32")
once(comm, "\nshare of decode in which a stage of two computes nothing: predicted, measured")
for M in (1, 2, 4):
    layout = Layout(pp=2, microbatches=M)
    ranks = generate(layout, model=wide[0], train=wide[1])
    idle = sum(one.idle for one, _ in ranks) / 2
    once(comm, f"    M = {M}   {generation.idle(layout):4.0%}   {idle:4.0%}")

# %% Drawing without gathering
# Each tp rank has the scores of its part of the vocabulary.  The largest of all is the largest of
# the ranks' largest, so that a value and an id from each are enough; and to *draw* from softmax is
# to take the largest after adding Gumbel noise to each score (Maddison et al. 2014).  The noise is
# looked up by seed, text, position and id, so that every rank knows its own.  Top-k needs k
# candidates of each rank.  Top-p needs all scores: how many tokens reach p depends on each of them.

ways = {"greedy": GREEDY, "temperature": Rule(0.8), "top-k 8": Rule(0.8, top_k=8)}
once(comm, "\nbytes that a rank of tp=4 sends to choose one token of each text")
for name, rule in {**ways, "top-p": Rule(0.8, top_p=0.9)}.items():
    everything = generate(Layout(tp=4), rule)[0][0].wire[1]["tp"] // (NEW - 1)
    sums = 2 * model.L + 1  # of B D float64 over four ranks: 2 (n-1)/n of each is sent
    once(comm, f"    {name:12} {everything - sums * 6 * len(prompts) * model.D * 8 // 4:6,}")

# %% Equal to one process
# In float64 every layout gives the same tokens as one process that computes the whole text anew
# for each; in float32 they can differ only where the two best scores are closer than rounding.

layouts = Layout(tp=4), Layout(pp=4, microbatches=4), Layout(dp=4, zero=3)
layouts += (Layout(tp=2, pp=2, microbatches=2),)
params, wanted = initial_params(model, train), []
for prompt in prompts:
    ids = [*prompt]
    for _ in range(NEW):
        ids.append(int(model_forward(np.array([ids]), params)[0][0, -1].argmax()))
    wanted.append(ids[len(prompt) :])
for layout in layouts:
    assert generate(layout)[0][0].ids == wanted
    assert generate(layout, replace(ways["top-k 8"], seed=1))[0][0].ids == (
        generate(Layout(), replace(ways["top-k 8"], seed=1))[0][0].ids
    )
once(comm, f"\n{', '.join(layout.name for layout in layouts)}: the tokens of one process")
