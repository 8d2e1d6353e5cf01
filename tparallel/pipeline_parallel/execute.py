"""Run one stage's program for real.

Sends are posted and not waited for: with blocking sends 1F1B deadlocks as soon as messages are too
large to be buffered (neighbours send to each other at once).  A sent array is dropped as soon as
its message is gone, a cache as soon as its backward has read it.

Communicates:  per micro-batch and boundary between stages, B T D elements downstream and upstream
Source:        Narayanan et al. 2021, section 2.2
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from ..backend import xp
from ..comm.axis import Axis
from ..serial.context import ORIGIN, Context
from .messages import checked
from .program import RECV_X, SEND_X, SENDS, Instruction
from .schedule import BW, B, F, Schedule, W


class Done(NamedTuple):
    """One computation, by this rank's clock (seconds)."""

    instruction: Instruction
    start: float
    end: float


class Executor:
    """The chunks that live on this stage, and what is in flight between their computations."""

    def __init__(self, chunks: dict, loss: tuple, pp: Axis, shape: tuple, dtype: str):
        self.chunks, self.pp, self.shape, self.dtype = chunks, pp, shape, dtype
        self.loss_forward, self.loss_backward = loss
        self.do = {F: self._forward, B: self._backward_input, W: self._weight, BW: self._backward}

    def run(
        self,
        schedule: Schedule,
        tokens: Any,
        targets: Any,
        count: int,
        after: Callable | None = None,
        at: Context = ORIGIN,
    ) -> tuple[float, list[Done]]:
        """All micro-batches of one step: tokens, targets (M, B, T).  Returns this rank's part of
        the loss and a list of ``Done``; gradients go to the chunks' store.  ``after`` is called
        with this executor after every computation (to look at what is held).  ``at`` is
        what layers must know from the first micro-batch on."""
        self.tokens, self.targets, self.count, self.at = tokens, targets, count, at
        self.last = schedule.chunks - 1
        self.backward_follows = not schedule.is_forward_only()
        self.x: dict = {}  # inputs and, going back, gradients of outputs: (chunk, micro-batch)
        self.dy: dict = {}
        self.caches: dict = {}  # from forward to backward
        self.wcaches: dict = {}  # from the first half of backward to the second
        self.posted: list = []  # sends under way, each with its array
        self.loss, timeline = 0.0, []
        for i in checked(schedule, self.pp.rank):
            if i.op in self.do:
                start = time.perf_counter()
                self.do[i.op](i.chunk, i.microbatch)
                timeline.append(Done(i, start, time.perf_counter()))
                if after:
                    after(self)
            elif i.op in SENDS:
                self._send(i)
            else:
                self._receive(i)
            self.posted = [message for message in self.posted if not message.is_done()]
        for message in self.posted:
            message.wait()
        self.posted.clear()
        return float(self.loss), timeline

    @property
    def in_flight(self) -> int:
        """Activations held: caches that wait for backward, or for its second half."""
        return len(self.caches) + len(self.wcaches)

    def _forward(self, chunk: int, m: int) -> None:
        x = xp.array(self.tokens[m]) if chunk == 0 else self.x.pop((chunk, m))
        y, caches = self.chunks[chunk].forward(x, self.at.from_row(m * len(x)))
        if chunk == self.last:
            targets = xp.array(self.targets[m])
            loss, cache = self.loss_forward(y, targets, self.count)
            self.loss += loss
            caches.append(cache)
        else:
            self.x[chunk + 1, m] = y
        if self.backward_follows:
            self.caches[chunk, m] = caches

    def _backward_input(self, chunk: int, m: int) -> None:
        caches = self.caches.pop((chunk, m))
        dx, self.wcaches[chunk, m] = self.chunks[chunk].backward_input(
            self._dy(chunk, m, caches), caches
        )
        self._hand_back(chunk, m, dx)

    def _weight(self, chunk: int, m: int) -> None:
        self.chunks[chunk].backward_weight(self.wcaches.pop((chunk, m)))

    def _backward(self, chunk: int, m: int) -> None:
        caches = self.caches.pop((chunk, m))
        self._hand_back(chunk, m, self.chunks[chunk].backward(self._dy(chunk, m, caches), caches))

    def _dy(self, chunk: int, m: int, caches: list) -> Any:
        if chunk == self.last:
            return self.loss_backward(caches.pop())
        return self.dy.pop((chunk, m))

    def _hand_back(self, chunk: int, m: int, dx: Any) -> None:
        if chunk > 0:
            self.dy[chunk - 1, m] = dx

    def _send(self, i: Instruction) -> None:
        if i.op == SEND_X:
            x, what = self.x.pop((i.chunk + 1, i.microbatch)), "x"
        else:
            x, what = self.dy.pop((i.chunk - 1, i.microbatch)), "dx"
        self.posted.append(self.pp.send(x, to=i.peer, tag=i.tag, what=what))

    def _receive(self, i: Instruction) -> None:
        into, what = (self.x, "x") if i.op == RECV_X else (self.dy, "dx")
        x = xp.empty(self.shape, self.dtype)
        into[i.chunk, i.microbatch] = self.pp.recv(x, source=i.peer, tag=i.tag, what=what)
