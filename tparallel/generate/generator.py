"""Prefill and decode on any mesh: forward passes, a choice, and the choice's way back.

Prefill computes all tokens of the prompts at once, decode one token of each row.  The micro-batches
follow each other through the stages, so that while one is downstream another one is here; the last
stage chooses, and every stage is told the ids, because every stage must know who has ended.

    stage 0   F0 F1 ·· F0 F1 ·· F0            M = 2 on 2 stages keep both busy; with M < S stages
    stage 1      F0 F1 ·· F0 F1 ·· F0         a share 1 − M/S of decode is idle (predict/generation)

Communicates:  tp, of B T D elements: two sums for each block, one for the embedding; candidates;
               pp: B T D elements downstream, B ids to every other stage;
               dp: nothing, or under ZeRO-3 an all_gather of each layer, and who goes on
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from .. import launch
from ..backend import to_host, xp
from ..comm.mesh import AXES
from ..out_of_memory import explained
from ..serial.model import kind
from ..train import Trainer
from .cache import KVCache
from .rows import Rows, check, dealt
from .sample import Rule, choose

Take = Callable[[list[Rows], int], None]  # this dp rank's micro-batches, and which one has grown


class Generated(NamedTuple):
    """``ids``: the new ones of each prompt, the same on every rank.  The rest is of this rank."""

    ids: list[list[int]]
    steps: list[int]  # of each micro-batch: prefill, and then as many less one of decode
    seconds: tuple[float, float]  # prefill, decode
    wire: tuple[dict, dict]  # prefill, decode: {axis: bytes sent}
    idle: float  # the share of decode in which this rank computed nothing
    cache: int  # bytes of keys and values


class Mark(NamedTuple):
    """A look at the clock and at what was done by then."""

    time: float
    busy: float  # seconds of computing
    wire: dict[str, int]

    def since(self, before: "Mark") -> "Mark":
        sent = {axis: size - before.wire[axis] for axis, size in self.wire.items()}
        return Mark(self.time - before.time, self.busy - before.busy, sent)


class Generator:
    """Asks a ``Trainer`` that is made for nothing else (``learns=False``).  ``cache`` False: every
    token is made from the whole text before it, which must give the same tokens."""

    def __init__(self, trainer: Trainer, rule: Rule = Rule(), cache: bool = True):  # noqa: B008
        self.trainer, self.rule, self.cache = trainer, rule, cache
        self.mesh, self.pp, self.store = trainer.mesh, trainer.mesh.pp, trainer.store
        self.first, self.last = self.pp.rank == 0, self.pp.rank == self.pp.size - 1
        (self.stage,) = trainer.executor.chunks.values()
        made_anew = self.store.sharded("params") or trainer.train.is_half
        self.layers = None if made_anew else [*self.store.gathered(self.stage.layers)]

    @explained
    def run(
        self,
        prompts: Sequence[Sequence[int]],
        new: int,
        stop: int | None = None,
        take: Take = lambda batches, m: None,
    ) -> Generated:
        """At most ``new`` tokens behind each prompt, fewer where the token ``stop`` comes.
        ``take`` is called whenever this rank has learnt the next ids of micro-batch m."""
        model, layout, here = self.trainer.model, self.trainer.layout, self.mesh.coords
        check(prompts, new, model)
        self.batches = dealt(prompts, layout, here.dp, new, stop)
        self.caches = [self._cache(rows) for rows in self.batches] if self.cache else []
        self.take, self.busy = take, 0.0
        self.posted: list = []
        self.owed: set[int] = set()  # micro-batches whose ids are on their way to this stage
        marks = [self._mark()]
        for step in range(new):
            launch.at(f"new token {step + 1}")
            for m, rows in enumerate(self.batches):
                self._hear(m)
                if self._goes_on(rows):
                    self._advance(m)
            if step in (0, new - 1):
                marks.append(self._mark())
        for m in range(len(self.batches)):
            self._hear(m)
        for message in self.posted:
            message.wait()
        return self._generated(len(prompts), marks[0], marks[1], marks[-1])

    def _cache(self, rows: Rows) -> KVCache:
        model, tp = self.trainer.model, self.mesh.tp.size
        blocks = [layer for layer in self.stage.layers if kind(layer) == "block"]
        heads, room = max(1, model.Hkv // tp), rows.ids.shape[1] - 1  # the last token asks nobody
        dtype = self.trainer.train.compute_dtype
        return KVCache(blocks, len(rows.ids), room, heads, model.K, dtype)

    def _goes_on(self, rows: Rows) -> bool:
        """Is there a row that has not ended?  Under ZeRO-3 on any dp rank: its layers are gathered
        with this rank's help."""
        goes = not rows.done.all()
        if self.store.sharded("params"):
            said = xp.asarray(np.array([float(goes)]))
            goes = float(self.mesh.dp.all_reduce(said, what="goes on", op="max")[0]) > 0
        return goes

    def _advance(self, m: int) -> None:
        """One forward pass of a micro-batch through this stage: all tokens, or each row's last."""
        rows, at, last = self.batches[m], self.trainer.at, xp.asarray(self.batches[m].last())
        if rows.steps and self.cache:
            tokens = rows.ids[np.arange(len(rows.ids)), rows.last()][:, None]
            past = self.caches[m].past(last[:, None], int(rows.lengths.max()))
            at, last = at._replace(start=past.start, past=past), xp.zeros_like(last)
        else:
            tokens = rows.ids[:, : rows.lengths.max()]
            at = at._replace(past=self.caches[m].past(0, tokens.shape[1]) if self.cache else None)
        x = xp.asarray(tokens) if self.first else self._receive(m, tokens.shape)
        begun = time.perf_counter()
        for layer, p in self.layers or self.store.gathered(self.stage.layers):
            if layer == "head":  # the only row of scores that is asked for
                x = x[xp.arange(len(x)), last][:, None]  # (B, 1, D)
            x = self.stage.functions[layer].forward(x, p, at=at.of(layer))[0]
            del p
        if self.last:
            x = self._choice(x[:, 0], rows)
        self.busy += time.perf_counter() - begun
        self._pass_on(m, x)

    def _choice(self, logits, rows: Rows):
        """The next id (B) of each row, from logits (B, V/tp)."""
        keys = [self.rule.key(n, int(at)) for n, at in zip(rows.numbers, rows.lengths)]
        keys = xp.asarray(np.array(keys, np.uint64)[:, None])
        return choose(logits, self.rule, keys, self.mesh.tp, self.trainer.model.V)

    def _pass_on(self, m: int, x) -> None:
        """Activations to the next stage, or the ids to every other one, without waiting."""
        self.posted = [message for message in self.posted if not message.is_done()]
        if not self.last:
            self.owed.add(m)
            self.posted.append(self.pp.send(x, to=self.pp.rank + 1, tag=2 * m, what="x"))
            return
        for stage in range(self.pp.rank):
            self.posted.append(self.pp.send(x, to=stage, tag=2 * m + 1, what="ids"))
        self._learn(m, x)

    def _hear(self, m: int) -> None:
        """The ids that the last stage has chosen, if this rank has not had them."""
        if m in self.owed:
            self.owed.remove(m)
            ids = xp.empty(len(self.batches[m].ids), "int64")
            last = self.pp.size - 1
            self._learn(m, self.pp.recv(ids, source=last, tag=2 * m + 1, what="ids"))

    def _learn(self, m: int, ids) -> None:
        self.batches[m].add(to_host(ids))
        self.take(self.batches, m)

    def _receive(self, m: int, shape: tuple[int, ...]):
        """What the stage before has made of a micro-batch."""
        x = xp.empty((*shape, self.trainer.model.D), self.trainer.train.compute_dtype)
        return self.pp.recv(x, source=self.pp.rank - 1, tag=2 * m, what="x")

    def _mark(self) -> Mark:
        wire = {axis: self.mesh.ledger.wire(axis) for axis in AXES}
        return Mark(time.perf_counter(), self.busy, wire)

    def _generated(self, prompts: int, begun: Mark, filled: Mark, ended: Mark) -> Generated:
        mine = {n: rows.new(i) for rows in self.batches for i, n in enumerate(rows.numbers)}
        every = {n: ids for part in self.mesh.comm.allgather(mine) for n, ids in part.items()}
        prefill, decode = filled.since(begun), ended.since(filled)
        return Generated(
            ids=[every[n] for n in range(prompts)],
            steps=[rows.steps for rows in self.batches],
            seconds=(prefill.time, decode.time),
            wire=(prefill.wire, decode.wire),
            idle=1 - decode.busy / decode.time if decode.time else 0.0,
            cache=sum(cache.nbytes for cache in self.caches),
        )
