"""What ``scripts/bench all`` is made of, and how long each part takes."""

from collections.abc import Iterator
from typing import NamedTuple

from tparallel import mkl

QUICK = 1  # rounds
START = 6  # seconds until the first step

# bench -> size -> (rounds, seconds that it took on two cores with everything installed)
TABLE: dict[str, dict[str, tuple[int, int]]] = {
    "single": {"tiny": (2, 30), "S": (12, 31), "M": (8, 80), "L": (5, 120)},
    "tensor-parallel": {"tiny": (2, 8), "S": (12, 8), "M": (10, 18)},
    "zero": {"tiny": (2, 8), "S": (10, 15), "M": (5, 40)},
    "pipeline": {"tiny": (2, 8), "S": (6, 24), "M": (3, 72)},
    "scaling": {"tiny": (2, 3), "M": (10, 32)},
    "crowded": {"tiny": (2, 5), "S": (6, 22)},
    "bubble": {"tiny": (2, 5), "S": (5, 105)},
    "generate": {"M": (3, 27), "L": (2, 117)},
    "generate-parallel": {"M": (3, 17), "L": (2, 62)},
    "collectives": {"": (40, 4)},
}
WITH_TORCH = {"single", "tensor-parallel", "zero", "pipeline", "generate"}
BY_PRODUCTS = {"tensor-parallel", "zero", "pipeline", "scaling"}  # once with each library
BOTH_AT_ONCE = {"single", "generate"}


class Part(NamedTuple):
    """One run of one bench, in processes of its own."""

    bench: str
    size: str
    products: str  # TPARALLEL_PRODUCTS, "" where the bench has both at once
    rounds: int
    seconds: float

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.bench, self.size, self.products)))

    def argv(self) -> list[str]:
        sizes = ["--sizes", self.size] if self.size else []
        return [self.bench, *sizes, "--rounds", str(self.rounds)]


def parts(benches: list[str], sizes: list[str], quick: bool) -> Iterator[Part]:
    libraries = ("array", "mkl") if mkl.installed() else ("array",)
    for bench in benches:
        for size in ("", *sizes):
            if size not in TABLE[bench]:
                continue
            rounds, seconds = TABLE[bench][size]
            if quick:
                share = 2 * QUICK / (rounds + 3)  # of the steps, warm-up and timed
                rounds, seconds = QUICK, START + share * max(0, seconds - START)
            one = ("",) if bench in BOTH_AT_ONCE else ("array",)
            for products in libraries if bench in BY_PRODUCTS else one:
                yield Part(bench, size, products, rounds, seconds)
