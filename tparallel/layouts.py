"""The one list of layouts that must agree with serial: the comparison, the tests, the README and
the tutorials all read it.

``for_ranks(4)`` is serial, each method alone on four ranks (tensor and sequence parallel, two
pipeline schedules, four ZeRO stages), then each pair of methods; eight ranks add all three at once.
A method that cannot use all the ranks (four heads are not cut eight ways) uses as many as it can.
"""

from collections.abc import Iterator
from typing import Any

from .config import Layout, ModelConfig, TrainConfig, check, replace
from .errors import LayoutError

METHODS: tuple[tuple[tuple[str, ...], dict], ...] = (
    (("tp",), {}),
    (("tp",), {"sp": "keep"}),
    (("pp",), {"schedule": "gpipe"}),
    (("pp",), {"schedule": "1f1b"}),
    *((("dp",), {"zero": stage}) for stage in range(4)),
    (("tp", "pp"), {}),
    (("tp", "dp"), {"zero": 1}),
    (("tp", "dp"), {"zero": 3}),
    (("pp", "dp"), {"zero": 1}),
    *((("tp", "pp", "dp"), {"zero": stage}) for stage in range(4)),
)
MODEL, TRAIN = ModelConfig(), TrainConfig()


def for_ranks(n: int, model: ModelConfig = MODEL, train: TrainConfig = TRAIN) -> list[Layout]:
    """Serial, then every method of ``METHODS`` on as many of ``n`` ranks as it can use."""
    out = [Layout(microbatches=microbatches(1, train.global_batch))]
    for axes, extra in METHODS:
        for ranks in range(n, 1, -1):
            found = list(_fitting(axes, extra, ranks, model, train))
            if found:
                out += found
                break
    return out


def microbatches(dp: int, global_batch: int) -> int:
    """M, into how many each data-parallel rank cuts its rows: 4 where they can be cut so."""
    return next((m for m in (4, 2) if global_batch % (dp * m) == 0), 1)


def picked(layouts: list[Layout], names: str) -> list[Layout]:
    """Those that ``"tp=4; dp=4 zero=1"`` names, in the order of the list."""
    wanted = [" ".join(name.split()) for name in names.split(";") if name.strip()]
    known = labels(layouts)
    for name in wanted:
        if name not in known:
            raise LayoutError(
                f"--layouts picks from the list for these ranks: {name!r} is not in it. Use some "
                f"of '{'; '.join(known)}', or --add for a layout of your own."
            )
    return [layout for layout, name in zip(layouts, known) if name in wanted]


def parse(text: str, global_batch: int) -> Layout:
    """``"tp=2,dp=2,zero=2"`` -> Layout, with the list's M unless ``microbatches`` is given."""
    layout = Layout.parse(text)
    if "microbatches" in text:
        return layout
    return replace(layout, microbatches=microbatches(layout.dp, global_batch))


def labels(layouts: list[Layout]) -> list[str]:
    """A name for each; M is part of it where it tells two apart."""
    names = [layout.name for layout in layouts]
    return [
        f"{name} M={layout.microbatches}" if names.index(name) != i else name
        for i, (name, layout) in enumerate(zip(names, layouts))
    ]


def _fitting(
    axes: tuple[str, ...], extra: dict, ranks: int, model: ModelConfig, train: TrainConfig
) -> Iterator[Layout]:
    """``ranks`` cut over these axes in every way that the model and the batch allow."""
    for sizes in _factors(ranks, len(axes)):
        size: dict[str, Any] = dict(zip(axes, sizes))
        M = microbatches(size.get("dp", 1), train.global_batch)
        layout = Layout(**size, **extra, microbatches=M)
        try:
            check(model, train, layout)
        except LayoutError:
            continue
        yield layout


def _factors(n: int, count: int) -> Iterator[tuple[int, ...]]:
    """Every way to write n as an ordered product of ``count`` numbers larger than 1."""
    if count == 1:
        yield (n,)
        return
    for first in range(2, n // 2 ** (count - 1) + 1):
        if n % first == 0:
            for rest in _factors(n // first, count - 1):
                yield (first, *rest)
