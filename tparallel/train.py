"""The training step on any mesh: serial/train.py with the loop over layers given to a pipeline
schedule, the layers' functions to tensor parallelism, and the parameters to a ZeRO store.
"""

from collections.abc import Callable

from . import kernels
from .backend import to_host
from .comm.link import Link
from .comm.mesh import Mesh
from .config import Layout, ModelConfig, TrainConfig, check
from .finite import refuse
from .out_of_memory import explained
from .pipeline_parallel.execute import Executor
from .pipeline_parallel.schedule import forward_only
from .pipeline_parallel.schedules import make
from .pipeline_parallel.stage import Chunk, cut_layers, stored_units
from .serial.context import Context, context
from .serial.dropout import Dropout
from .serial.parameters import initial, shapes
from .serial.recompute import RECOMPUTE
from .tensor_parallel.model import layer_functions, loss_functions, region
from .tensor_parallel.split import counts_here, shard, unshard
from .zero.norm import totals
from .zero.precision import scaled
from .zero.store import Store


class Trainer:
    """This rank's part of one model in training: ``mesh``, ``store``, ``executor``.

    ``start(unit, tp rank, tp size, dtype)`` gives this rank's first values of a layer, such as
    ``weights.Folder.part``; None: those of ``initial``.  One that never ``learns`` holds no
    gradients and no optimizer's state: evaluate.py asks it.
    """

    @explained
    def __init__(
        self,
        model: ModelConfig,
        train: TrainConfig,
        layout: Layout,
        comm,
        link: Link | None = None,
        start: Callable[..., dict] | None = None,
        learns: bool = True,
    ):
        check(model, train, layout, comm.size)
        kernels.check(train.activations)
        self.model, self.train, self.layout, self.start = model, train, layout, start
        self.shapes = shapes(model)
        self.schedule = make(layout.schedule, layout.pp, layout.microbatches, layout.chunks)
        self.forwards = forward_only(self.schedule)
        where = self.schedule.placement
        self.mesh = mesh = Mesh(layout, comm, link, ends=(where[0], where[-1]))
        layers = cut_layers(model, len(where), layout.cut)
        mine = self.schedule.chunks_of(mesh.pp.rank)
        units = stored_units([layer for c in mine for layer in layers[c]], model.tied)
        self.store = Store(
            ((unit, self._initial(unit)) for unit in units),
            layout.zero,
            mesh,
            train,
            model.tied,
            self._counts_here,
            learns,
        )
        tp = region(mesh.tp, model, layout)
        self.held = tp.tokens(model.T)  # the positions of x on this rank
        self.at = context(model, train.master_dtype)
        functions = layer_functions(tp, model.V)
        functions = functions | {"block": RECOMPUTE[layout.recompute](functions["block"])}
        self.executor = Executor(
            {c: Chunk(layers[c], functions, self.store) for c in mine},
            scaled(loss_functions(mesh.tp, model.V), self.store.loss_scale),
            mesh.pp,
            (layout.rows(train.global_batch), self.held.stop - self.held.start, model.D),
            train.compute_dtype,
        )
        self.timeline: list = []

    def _initial(self, unit: str) -> dict:
        t, tp = self.train, self.mesh.tp
        if self.start:
            return self.start(unit, tp.rank, tp.size, t.master_dtype)
        whole = initial(self.model, unit, t.seed, t.master_dtype, t.init)
        return shard(whole, tp.rank, tp.size)

    def _counts_here(self, key: tuple[str, str]) -> bool:
        unit, name = key
        tp = self.mesh.tp
        return counts_here(name, self.shapes[unit][name], tp.rank, tp.size)

    @explained
    def step(self, step: int, tokens, targets) -> tuple[float, float]:
        """One update from the global batch (G, T); returns its loss (nats per token) and the
        gradient norm before clipping, the same on every rank.  Errors: NotFiniteError."""
        loss = self.forward_backward(tokens, targets, step=step)
        loss, norm = totals(self.store, loss)
        refuse(self, step, loss, norm, tokens, targets)  # before the update: parameters stay clean
        self.store.update(step, norm)
        return loss, norm

    @explained
    def forward_backward(self, tokens, targets, after=None, step: int = 0) -> float:
        """Gradients of the global batch, summed, into the store; this rank's part of the loss."""
        mine = self.mine(tokens), self.mine(targets)
        loss, self.timeline = self.executor.run(
            self.schedule, *mine, tokens.size, after, self._at(step)
        )
        self.store.reduce()
        return loss

    @explained
    def evaluate(self, tokens, targets) -> float:
        """Loss of a global batch (G, T), without gradients, the same on every rank."""
        mine = self.mine(tokens), self.mine(targets)
        loss, _ = self.executor.run(self.forwards, *mine, tokens.size, at=self.at)
        return totals(self.store, loss)[0]

    def _at(self, step: int) -> Context:
        """What this rank's layers must know in a step: which rows, heads and positions are here."""
        here = self.mesh.coords
        drop = Dropout(
            self.train.dropout,
            row=here.dp * self.train.global_batch // self.layout.dp,
            head=here.tp * self.model.H // self.layout.tp,
            t=self.held.start,
        )
        return self.at._replace(drop=drop.of(self.train.seed, step))

    def mine(self, rows):
        """This dp rank's rows of the global batch, as (M, B, T)."""
        G, T = self.train.global_batch, self.model.T
        if rows.shape != (G, T):
            raise ValueError(f"a global batch is (G, T) = ({G}, {T}): this one is {rows.shape}.")
        M, B = self.layout.microbatches, self.layout.rows(G)
        start = self.mesh.coords.dp * M * B
        return rows[start : start + M * B].reshape(M, B, -1)

    def grads(self) -> dict | None:
        """Every gradient of the model, whole, on rank 0 of the job (None elsewhere)."""
        return self._whole("grads", self.store.grads)

    def params(self) -> dict | None:
        """Every parameter of the model, whole, on rank 0 of the job (None elsewhere)."""
        return self._whole("params", self.store.params)

    def moments(self) -> tuple | None:
        """Adam's m and v, whole, on rank 0 of the job (None elsewhere)."""
        both = [self._whole("optimizer", part) for part in self.store.moments]
        return tuple(both) if self.mesh.comm.rank == 0 else None

    def _whole(self, kind: str, vectors: dict) -> dict | None:
        mine = self.store.whole(kind, vectors)
        mine = {unit: {n: to_host(a) for n, a in p.items()} for unit, p in mine.items()}
        parts = self.mesh.comm.gather((self.mesh.coords, mine))
        if parts is None:
            return None
        first = [(at, p) for at, p in parts if at.dp == 0]  # replicas over dp are equal
        out = {}
        for unit in dict.fromkeys(unit for _, p in first for unit in p):
            stage = min(at.pp for at, p in first if unit in p)
            held = [p[unit] for at, p in first if at.pp == stage and unit in p]
            out[unit] = unshard(held, self.shapes[unit])
        return out

    def close(self) -> None:
        self.mesh.close()
