"""Rows on the terminal, in a file, and as README's table."""

import datetime
import json
import os
import platform
from importlib import metadata
from pathlib import Path

from tparallel import launch


def table(rows: list[dict]) -> None:
    head = f"{'':28}{'size':>6}  {'kernels':8}{'products':9}{'peer':22}"
    print(f"\n{machine()}\n{head}{'ours':>10}{'theirs':>10}{'ratio':>8}")
    for row in rows:
        what = f"{row['bench']:28}{row['size']:>6}  {row['kernels']:8}{row['products']:9}"
        figures = f"{row['ours']:10,.4g}{row['theirs']:10,.4g}{row['ratio']:8.3f}"
        print(f"{what}{row['peer']:22}{figures}  {row['unit']}")


def write(path: Path, rows: list[dict], **more) -> None:
    """Whole or not at all: a reader never finds half a file.  Of ``more`` what is not empty."""
    more = {name: value for name, value in more.items() if value}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps({"machine": machine(), **more, "rows": rows}, indent=1) + "\n")
    os.replace(part, path)


def machine() -> str:
    """What was measured on, and when: processor, cores, versions."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [ln for ln in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in ln]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    versions = [f"Python {platform.python_version()}", *filter(None, map(version, PACKAGES))]
    day = datetime.date.today().isoformat()
    return f"{cpu}, {os.cpu_count()} cores; {', '.join(versions)}; {launch.installed()}; {day}"


PACKAGES = {"numpy": "NumPy", "numba": "numba", "mkl": "MKL", "torch": "PyTorch"}


def version(package: str) -> str:
    try:
        return f"{PACKAGES[package]} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return ""


README = (  # what it is called there, what it stands beside; bench, peer, kernels
    ("one process", "PyTorch eager", "single", "torch-eager", "fast"),
    ("one process", "PyTorch compiled", "single", "torch-compiled", "fast"),
    ("one process without numba", "PyTorch eager", "single", "torch-eager", "tuned"),
    ("`tp=2`", "Megatron's cut by hand, gloo", "tensor-parallel", "torch-gloo-tp", "fast"),
    (
        "`pp=2`, 8 micro-batches, 1F1B",
        "`torch.distributed.pipelining`, 1F1B",
        "pipeline 1f1b",
        "torch-pipelining-1f1b",
        "fast",
    ),
    ("the same, ZB-H1", "the same", "pipeline zb-h1", "torch-pipelining-1f1b", "fast"),
    ("`dp=2 zero=1`", "DistributedDataParallel", "zero 1", "torch-ddp", "fast"),
    ("`dp=2 zero=3`", "FSDP2", "zero 3", "torch-fsdp2", "fast"),
    ("peak memory of one process", "PyTorch eager's", "single peak memory", "torch-eager", "fast"),
    ("`dp=2 zero=1`, twice the batch", "one rank", "scaling zero=1", "one rank", "fast"),
    ("`tp=2`", "one rank", "scaling tp=2", "one rank", "fast"),
)


def markdown(rows: list[dict]) -> str:
    """README's table of ratios: NumPy's products, in brackets MKL's."""
    ratios = {
        (r["bench"], r["peer"], r["kernels"], r["size"], r["products"]): r["ratio"] for r in rows
    }
    lines = ["| | beside | size S | size M | GPT-2 124 M |", "|---|---|---:|---:|---:|"]
    for ours, theirs, *what in README:
        cells = []
        for size in ("S", "M", "L"):
            found = [ratios.get((*what, size, products)) for products in ("array", "mkl")]
            plain, mkl = ("" if ratio is None else f"{ratio:.2f}" for ratio in found)
            cells.append(f"{plain} ({mkl})" if plain and mkl else plain or mkl)
        if any(cells):
            lines.append(f"| {ours} | {theirs} | {' | '.join(cells)} |")
    return "\n".join(lines)
