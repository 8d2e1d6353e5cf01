"""The loss and the logits of a model on any mesh: forward passes only.

Rows that do not fill a batch are filled up with rows that have no targets, so that any number of
rows goes through any layout; they are computed and not counted.

Communicates:  what the forward passes do; one number per axis for the loss; where logits are asked
               for, each block (B, T, V/tp) of them from the last stage to rank 0 (not counted)
"""

from collections.abc import Callable

import numpy as np

from . import launch
from .backend import to_host, xp
from .comm.mesh import Coords, rank_of
from .pipeline_parallel.schedule import F
from .tensor_parallel.split import part
from .train import Trainer

NO_TARGET = -1
Take = Callable[[slice, slice, np.ndarray], None]  # rows, vocabulary, logits (rows, T, vocabulary)


class Evaluator:
    """Asks a ``Trainer`` that is made for nothing else (``learns=False``)."""

    def __init__(self, trainer: Trainer):
        self.trainer, self.mesh = trainer, trainer.mesh
        self.loss_forward = trainer.executor.loss_forward
        trainer.executor.loss_forward = self._loss
        last = trainer.forwards.chunks - 1
        self.stage = trainer.forwards.placement[last]
        self.order = [
            a.microbatch for a in trainer.forwards.actions(self.stage) if a[:2] == (F, last)
        ]

    def loss(
        self,
        tokens: np.ndarray,
        targets: np.ndarray,
        take: Take | None = None,
        done: Callable[[int], None] = lambda rows: None,
    ) -> float:
        """Σ −log p(target) in nats, over all targets but those that are −1, which end a row.

        Shapes:  tokens, targets (N, T) integers, any N; ``take`` is called on rank 0 with every
                 block of logits, in the dtype of activations; ``done`` with the number of rows
        """
        G, total = self.trainer.train.global_batch, 0.0
        for start in range(0, len(tokens), G):
            launch.at(f"row {start}")
            rows = _filled(tokens[start : start + G], G, 0)
            wanted = _filled(targets[start : start + G], G, NO_TARGET)
            self.logits: list = []
            self.keep = take is not None
            executor, mine = self.trainer.executor, self.trainer.mine
            total += executor.run(
                self.trainer.forwards, mine(rows), mine(wanted), 1, at=self.trainer.at
            )[0]
            if take:
                self._to_rank_0(start, len(tokens), take)
            done(min(start + G, len(tokens)))
        return self._everywhere(total)

    def _loss(self, logits, targets, count: int):
        """The loss of the rows' targets, in place of the executor's own."""
        if self.keep:
            self.logits.append(to_host(logits))
        total = 0.0
        for i, n in enumerate((targets >= 0).sum(-1).tolist()):
            if n:
                total += float(
                    self.loss_forward(logits[i : i + 1, :n], targets[i : i + 1, :n], 1)[0]
                )
        return total, None

    def _to_rank_0(self, start: int, rows: int, take: Take) -> None:
        """Block by block, so that rank 0 never holds more than one besides its own."""
        layout, mesh, model = self.trainer.layout, self.mesh, self.trainer.model
        B = layout.rows(self.trainer.train.global_batch)
        for dp in range(layout.dp):
            for place, m in enumerate(self.order):
                first = start + (dp * layout.microbatches + m) * B
                inside = slice(first, min(first + B, rows))
                for tp in range(layout.tp):
                    source = rank_of(Coords(dp, self.stage, tp), layout)
                    words = part(model.V, tp, layout.tp)
                    if first >= rows or mesh.comm.rank not in (0, source):
                        continue
                    shape = B, model.T, words.stop - words.start
                    block = self.logits[place] if mesh.comm.rank == source else None
                    block = _moved(
                        block, shape, self.trainer.train.compute_dtype, source, mesh.comm
                    )
                    if mesh.comm.rank == 0:
                        take(inside, words, block[: inside.stop - inside.start])

    def _everywhere(self, share: float) -> float:
        total = xp.asarray(np.array([share if self.mesh.tp.rank == 0 else 0.0]))
        for axis in (self.mesh.tp, self.mesh.pp, self.mesh.dp):
            total = axis.all_reduce(total, what="loss")
        return float(total[0])


def next_tokens(tokens: np.ndarray) -> np.ndarray:
    """The targets of rows that stand alone: each token's successor, none for the last."""
    targets = np.full_like(tokens, NO_TARGET)
    targets[:, :-1] = tokens[:, 1:]
    return targets


def rows_of(text: np.ndarray, T: int) -> tuple[np.ndarray, np.ndarray]:
    """tokens, targets (N, T): a whole text in rows, one after the other.  Every token but the
    first is a target once; the last row is filled up."""
    N = max(1, -(-(len(text) - 1) // T))
    tokens, targets = (np.full(N * T, fill, np.int64) for fill in (0, NO_TARGET))
    tokens[: len(text) - 1], targets[: len(text) - 1] = text[:-1], text[1:]
    return tokens.reshape(N, T), targets.reshape(N, T)


def _filled(rows: np.ndarray, count: int, value: int) -> np.ndarray:
    missing = np.full((count - len(rows), rows.shape[1]), value, rows.dtype)
    return np.concatenate([rows, missing])


def _moved(block, shape: tuple, dtype: str, source: int, comm) -> np.ndarray:
    """The block on rank 0, which waits for it; the source posts it and waits."""
    if source == 0:
        return block
    if comm.rank == source:
        comm.Send(np.ascontiguousarray(block), dest=0)
        return block
    block = np.empty(shape, dtype)
    comm.Recv(block, source=source)
    return block
