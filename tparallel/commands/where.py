"""Who holds which part of a parameter, its gradient and its moments, and who sums the gradient."""

import argparse
from collections.abc import Iterator
from math import prod

from rich import box
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table

from ..comm.mesh import coords
from ..config import Layout, ModelConfig, TrainConfig, check
from ..report.console import job_console
from ..where import (
    Held,
    bucket_of,
    find,
    names,
    overlap,
    partition,
    stored_on,
    sums,
    unit_of,
    where,
)
from . import flags

EXAMPLES = """examples:
  tparallel where block.1.mlp.w_in --tp 2 --pp 2 --dp 2 --zero 3
  tparallel where block.0.norm1.g --tp 4       a parameter that every tp rank holds whole
  tparallel where vocab.w_tok --tied --pp 2    the table that the first and last stage share
  tparallel where block.0                      the parameters of a layer, and their shapes
  tparallel where 'block.*.mlp.w_in'           those that match

No ranks are started: the answer follows from the flags alone.
"""
UPDATE = (  # who updates the parameter, by ZeRO stage
    "Every rank that holds it updates all that it holds; equal sums keep equal copies equal.",
    "Each rank updates the range whose moments it holds; all_gather over dp completes it again.",
    "Each rank updates the range whose moments it holds; all_gather over dp completes it again.",
    "Each rank updates the range that it holds. For as long as the layer computes, and no longer, "
    "all_gather over dp brings its vector together.",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "parameter",
        metavar="PARAM",
        help="its name, e.g. block.1.mlp.w_in; or a layer; or a pattern",
    )
    for name, default in (("optimizer", "adamw"), ("dtype", "float32")):
        about = f"{flags.HELP[name]} (default: {default})"
        parser.add_argument(f"--{name}", default=default, metavar="NAME", help=about)
    flags.add_flags(parser, Layout, ModelConfig)


def main(args: argparse.Namespace) -> int:
    model = flags.model_config(args)
    layout = flags.layout(args, global_batch=8 * getattr(args, "dp", 1))
    rows = layout.dp * layout.microbatches  # any batch will do, as long as it can be cut
    train = TrainConfig(optimizer=args.optimizer, dtype=args.dtype, global_batch=rows)
    check(model, train, layout)
    found = find(args.parameter, model)
    view = answer(found[0], model, train, layout) if len(found) == 1 else listing(found, model)
    console = job_console(rank=0)
    for part in view:
        console.print(part, highlight=False)
    return 0


def listing(found: list[str], model: ModelConfig) -> Iterator[RenderableType]:
    """The parameters that a pattern matches."""
    table = _table("parameter", "shape", "numbers")
    for name in found:
        shape = names(model)[name]
        table.add_row(name, str(shape), f"{prod(shape):,}")
    yield table
    yield "Name one of them to see who holds it."


def answer(
    name: str, model: ModelConfig, train: TrainConfig, layout: Layout
) -> Iterator[RenderableType]:
    shape, unit, M = names(model)[name], unit_of(name, model), layout.microbatches
    ranks = "1 rank" if layout.ranks == 1 else f"{layout.ranks} ranks"
    yield f"[bold]{name}[/]  shape {shape}, {prod(shape):,} numbers; {layout.name}: {ranks}\n"
    if layout.zero:
        first = where(name, model, train, layout)[0]
        flat = partition(unit, first.at, model, train, layout)
        layers = bucket_of(unit, first.at, model, train, layout)
        yield (
            f"What a tp rank holds of {_few(layers)} lies in one flat vector; on rank "
            f"{first.rank} it has {flat.size} numbers, of which {_slice(first.vector)} are this "
            f"parameter. It is cut over {flat.n} dp ranks, in shards of {flat.shard}. The ranges "
            "below count in it.\n"
        )
    yield holdings(name, model, train, layout)
    if layout.pp > 1:
        yield ""
    for stage in range(layout.pp) if layout.pp > 1 else ():
        yield f"Stage pp = {stage} stores {_few(stored_on(stage, model, layout))}."
    yield "\n[bold]Who sums its gradient, and why[/]"
    if M > 1:
        yield _indented(f"each rank by itself: over its {M} micro-batches, one after the other.")
    for axis, groups, why in sums(name, model, layout):
        who = "; ".join(" + ".join(map(str, group)) for group in groups)
        how = " " + summed_over_dp(layout) if axis == "dp" else ""
        yield _indented(f"{axis}: " + (f"ranks {who}. " if groups else "nobody. ") + why + how)
    if layout.ranks == 1:
        yield _indented("nobody else. This rank sees the whole batch.")
    yield "\n[bold]Who updates it[/]"
    yield _indented(UPDATE[layout.zero])


def summed_over_dp(layout: Layout) -> str:
    """By which verbs, and how often in a step."""
    if not layout.zero:
        return "By all_reduce: each gets the whole sum, because each updates everything."
    often = layout.zero > 1 and layout.microbatches > 1 and layout.reduce_each == "microbatch"
    hybrid = layout.shard_group and not layout.secondary
    across = "; then all_reduce with those that hold the same shard" if hybrid else ""
    rest = ", and keeps no more of it" if layout.zero > 1 else ""
    return (
        f"By reduce_scatter {'after each micro-batch' if often else 'once a step'}{across}: each "
        f"gets the sum of its own shard, the only one that it updates{rest}."
    )


def holdings(name: str, model: ModelConfig, train: TrainConfig, layout: Layout) -> Table:
    """One row for each rank: its place, its slice of the whole, and what it keeps of it."""
    by_rank = {held.rank: held for held in where(name, model, train, layout)}
    table = _table("rank", "dp pp tp", "slice of the whole", "parameter", "gradient")
    if layout.zero == 1:
        table.add_column("... of it summed")
    state = ["moments m, v"] * (train.optimizer == "adamw") + ["master weights"] * train.is_half
    for column in state:
        table.add_column(column)
    for rank in range(layout.ranks):
        place = " ".join(f"{i:>2}" for i in coords(rank, layout))
        held = by_rank.get(rank)
        if held is None:
            table.add_row(str(rank), place, "not here", style="dim")
            continue
        cells = [_range(held, "params"), _range(held, "grads")]
        if layout.zero == 1:
            cells.append(_slice(overlap(held.vector, held.shard)))
        cells += [_range(held, "optimizer")] * len(state)
        table.add_row(str(rank), place, subscript(held.cut, names(model)[name]), *cells)
    return table


def subscript(cut: tuple[slice, ...], shape: tuple[int, ...]) -> str:
    """``[:, 0:256]``: a part of a tensor in NumPy's notation."""
    if all(c == slice(0, size) for c, size in zip(cut, shape)):
        return "all"
    dims = (":" if c == slice(0, size) else _slice(c) for c, size in zip(cut, shape))
    return f"[{', '.join(dims)}]"


def _range(held: Held, kind: str) -> str:
    return "all" if held.kept[kind] == held.vector else _slice(held.kept[kind])


def _slice(s: slice) -> str:
    return f"{s.start}:{s.stop}" if s.start < s.stop else "none"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in ("rank", "numbers") else "left")
    return table


def _indented(text: str) -> Padding:
    return Padding(text, (0, 0, 0, 2), expand=False)


def _few(words: list[str]) -> str:
    return ", ".join(words if len(words) < 6 else [*words[:2], "...", *words[-2:]])
