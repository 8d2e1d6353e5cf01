"""Does a layout fit the model, the batch and the number of ranks?"""

from ..errors import LayoutError
from ..pipeline_parallel.schedules import make
from .layout import Layout
from .model import ModelConfig
from .rules import divisors, either
from .train import TrainConfig


def check(model: ModelConfig, train: TrainConfig, layout: Layout, ranks: int | None = None) -> None:
    """Does the layout fit the model, the batch and the number of ranks?  Raises LayoutError."""
    tp, pp, dp, M = layout.tp, layout.pp, layout.dp, layout.microbatches
    fitting = [n for n in divisors(model.H) if model.F % n == 0 and n <= model.V]
    fitting = [n for n in fitting if model.Hkv % n == 0 or n % model.Hkv == 0]
    for letter, what in (("H", "the number of heads"), ("F", "the feed-forward size")):
        size = getattr(model, letter)
        if size % tp:
            raise LayoutError(
                f"tp must divide {what}: {letter} = {size}, tp = {tp}. Use tp {either(fitting)}."
            )
    if model.Hkv % tp and tp % model.Hkv:
        raise LayoutError(
            f"tp must divide the key/value heads, or they it: Hkv = {model.Hkv}, tp = {tp}. "
            f"Use tp {either(fitting)}."
        )
    if layout.sp and model.T % tp:
        raise LayoutError(
            f"tp must divide the sequence under sequence parallelism: T = {model.T}, tp = {tp}. "
            f"Use tp {either(divisors(model.T))}, or no sp."
        )
    if tp > model.V:
        raise LayoutError(
            f"every tp rank needs a row of the vocabulary: V = {model.V}, tp = {tp}. "
            f"Use tp {either(fitting)}."
        )
    schedule = make(layout.schedule, pp, M, layout.chunks)
    if pp > model.L:
        raise LayoutError(
            f"every pipeline stage needs a block: L = {model.L}, pp = {pp}. "
            f"Use pp of at most {model.L}, or L = {pp}."
        )
    if schedule.chunks > model.L:
        raise LayoutError(
            f"every chunk of a pipeline needs a block: L = {model.L}, {layout.schedule} cuts the "
            f"model into {schedule.chunks} chunks. Use L of {schedule.chunks} or more, or "
            "fewer stages."
        )
    if train.global_batch % (dp * M):
        raise LayoutError(
            f"dp × microbatches must divide the global batch: dp = {dp}, microbatches = {M}, "
            f"global batch = {train.global_batch}. Use a global batch of {dp * M} or a multiple."
        )
    if ranks is not None and ranks != layout.ranks:
        raise LayoutError(
            f"tp × pp × dp = {tp} × {pp} × {dp} = {layout.ranks}, but mpirun started {ranks} "
            f"rank{'s' * (ranks > 1)}. Use mpirun -n {layout.ranks}" + _or_dp(ranks, layout) + "."
        )


def _or_dp(ranks: int, layout: Layout) -> str:
    dp, rest = divmod(ranks, layout.tp * layout.pp)
    return f", or dp = {dp}" if rest == 0 and dp > (layout.zero > 0) else ""
