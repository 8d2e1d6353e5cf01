"""What ``scripts/bench all`` is made of, and how long each part takes."""

from collections.abc import Iterator
from typing import NamedTuple

from tparallel import mkl

QUICK = 2  # rounds

# bench -> size -> (rounds, seconds that it took on two cores with everything installed)
TABLE: dict[str, dict[str, tuple[int, int]]] = {
    "single": {"tiny": (2, 30), "S": (12, 31), "M": (8, 70), "L": (6, 130)},
    "tensor-parallel": {"tiny": (2, 8), "S": (12, 8), "M": (10, 18)},
    "zero": {"tiny": (2, 8), "S": (10, 15), "M": (6, 45)},
    "pipeline": {"tiny": (2, 8), "S": (6, 30), "M": (3, 80)},
    "scaling": {"tiny": (2, 3), "M": (10, 30)},
    "crowded": {"tiny": (2, 5), "S": (6, 22)},
    "bubble": {"tiny": (2, 5), "S": (8, 90)},
    "generate": {"M": (3, 30), "L": (3, 60)},
    "generate-parallel": {"M": (3, 20), "L": (3, 60)},
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
                rounds, seconds = QUICK, seconds * (QUICK + 3) / (rounds + 3)
            one = ("",) if bench in BOTH_AT_ONCE else ("array",)
            for products in libraries if bench in BY_PRODUCTS else one:
                yield Part(bench, size, products, rounds, seconds)
