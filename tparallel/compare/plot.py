"""compare.png: what each rank holds and sends in every layout, and the loss curves.

Needs matplotlib, the extra ``plot``.
"""

from pathlib import Path
from typing import Any

from .table import by_axis
from .verdict import CURVE

HELD = {  # kind: (title, colour); safe for the colour-blind, and ordered by lightness
    "params": ("parameters", "#0b3c5d"),
    "grads": ("gradients", "#328cc1"),
    "optimizer": ("optimizer state", "#a8d0e6"),
    "activations_peak": ("activations, peak", "#e69f00"),
    "secondary": ("the group's copy (ZeRO++)", "#c4b000"),
    "gathered_peak": ("gathered layer (ZeRO 3), peak", "#7a4b00"),
}
SENT = {"tp": ("tp", "#0b3c5d"), "pp": ("pp", "#d55e00"), "dp": ("dp", "#2a9d6f")}
FAMILY = {**SENT, "serial": ("serial", "0.45"), "mixed": ("several axes", "#9b4f96")}
GROUP = 0.8  # of the room of a layout that its ranks' bars take together


def plot(result: dict, folder: Path) -> Path:
    """Draw the result.  Errors: ImportError where matplotlib is missing, OSError."""
    from matplotlib.figure import Figure

    rows = result["rows"]
    figure = Figure(figsize=(14, 2.2 + 0.42 * max(8, len(rows))), layout="constrained")
    panels = figure.subplot_mosaic(
        [["held", "sent", "loss"], ["held", "sent", "apart"]], width_ratios=[1.25, 0.9, 1.0]
    )
    model, run = result["model"], result["run"]
    figure.suptitle(
        f"{len(rows)} layouts of one transformer on {run['ranks']} ranks: "
        f"L {model['L']}, D {model['D']}, H {model['H']}, T {model['T']}, V {model['V']}, "
        f"{model['parameters']:,} parameters, global batch {run['global_batch']}, {run['dtype']}",
        fontsize=11,
    )
    _bars(panels["held"], rows, "held", HELD, "bytes held, a bar for each rank")
    _bars(panels["sent"], rows, "wire", SENT, "bytes sent in a step, a bar for each rank")
    panels["held"].set_yticks(range(len(rows)), [row["name"] for row in rows])
    panels["sent"].set_yticks(range(len(rows)), [])
    _curves(panels["loss"], panels["apart"], result)
    path = folder / "compare.png"
    figure.savefig(path, dpi=130)
    return path


def _bars(ax: Any, rows: list[dict], kind: str, parts: dict, title: str) -> None:
    """Stacked bars, measured; the black tick at the end is the closed form's total."""
    drawn = {part for row in rows for part, n in by_axis(row[f"{kind}_bytes"]).items() if any(n)}
    for part, (label, colour) in parts.items():
        if part in drawn:
            ax.barh([0], [0], color=colour, label=label)
    for y, row in enumerate(rows):
        measured, closed = (by_axis(row[f"{kind}_bytes{which}"]) for which in ("", "_predicted"))
        n = row["layout"]["tp"] * row["layout"]["pp"] * row["layout"]["dp"]
        height = GROUP / max(n, 4)  # one rank's bar is as thick as one of four
        for rank in range(n):
            at, left = y + (rank - (n - 1) / 2) * height, 0
            for part in measured:
                colour = parts[part][1]
                ax.barh(at, measured[part][rank], 0.86 * height, left, color=colour)
                left += measured[part][rank]
            total = sum(closed[part][rank] for part in closed)
            if total:
                ax.plot([total] * 2, [at - 0.43 * height, at + 0.43 * height], "k", lw=1.6)
    ax.plot([], [], "k", lw=1.6, label="closed form")
    ax.set_title(title, loc="left", fontsize=10)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlim(left=0)
    ax.locator_params(axis="x", nbins=6)
    ax.xaxis.set_major_formatter(_bytes)
    ax.grid(axis="x", alpha=0.3)
    ax.set_axisbelow(True)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right"]].set_visible(False)
    _legend(ax, 3 if kind == "held" else 4)


def _curves(loss: Any, apart: Any, result: dict) -> None:
    """Above, every layout's loss; below, its distance from serial's, which alone can be seen."""
    serial, steps = result["serial_loss"], range(len(result["serial_loss"]))
    loss.plot(steps, serial, color="0.8", lw=6, label="serial/train.py")
    named = set()
    apart.set_yscale("log")
    for row in result["rows"]:
        axes = [axis for axis in SENT if row["layout"][axis] > 1]
        label, colour = FAMILY[axes[0] if len(axes) == 1 else "mixed" if axes else "serial"]
        loss.plot(steps, row["loss"], color=colour, lw=1)
        away = [abs(a - b) / b for a, b in zip(row["loss"], serial)]
        far = [max(away[: k + 1]) or None for k in steps]  # zero has no place on a log scale
        apart.plot(steps, far, color=colour, lw=1.2, label=None if label in named else label)
        named.add(label)
    loss.set_title("loss by step, nats per token, every layout", loc="left", fontsize=10)
    loss.legend(fontsize=8, frameon=False)
    apart.set_title("furthest from serial/train.py so far, relative", loc="left", fontsize=10)
    apart.axhline(CURVE, color="k", ls="--", lw=1)
    apart.annotate(f"allowed: {CURVE:g}", (0, 1.2 * CURVE), fontsize=8)
    apart.plot([0], [CURVE / 10], alpha=0)  # a range, where every curve is on the serial one
    apart.set_ylim(top=10 * CURVE)
    _legend(apart, 5, below=-0.08)
    for ax in (loss, apart):
        ax.locator_params(axis="x", integer=True)
        ax.set_xlim(0, len(serial) - 1)
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)


def _legend(ax: Any, columns: int, below: float = -0.05) -> None:
    """Below the panel, where it hides nothing."""
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, below)}
    ax.legend(fontsize=8, frameon=False, ncols=columns, **place)


def _bytes(value: float, position: Any) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g}"
