"""The result as one table: a layout a row, at most 100 columns wide."""

from rich import box
from rich.table import Table
from rich.text import Text

from .verdict import differences, unequal

# (kind, part, the two lines of its heading); the upper lines read on from column to column
HELD = (
    ("held", "params", "  held\n  param"),
    ("held", "grads", "per\ngrad"),
    ("held", "optimizer", "rank\nopt"),
    ("held", "activations_peak", "{unit}\nact"),
)
SENT = (("wire", "tp", " sent\n  tp"), ("wire", "pp", "per\npp"), ("wire", "dp", "step\ndp"))
UNITS = {"GB": 10**9, "MB": 10**6, "kB": 10**3, "B": 1}


def table(result: dict) -> Table:
    """Bytes are those of the rank that has most; a figure that is not its closed form is red."""
    unit = unit_of(result)
    out = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    out.add_column("\nlayout", no_wrap=True)
    right = ["\nM", "grad\nerror", *(title.format(unit=unit) for _, _, title in HELD + SENT)]
    for title in [*right, "  ms/\n step", "tokens\n/s", "\nwait", "bubble\np/m %"]:
        out.add_column(title, justify="right", no_wrap=True)
    for row in result["rows"]:
        out.add_row(*_cells(row, unit))
    return out


def notes(result: dict) -> str:
    """What the columns mean, to be read below them."""
    rows, unit = result["rows"], unit_of(result)
    lines = [
        f"held, sent: {unit} of the rank that has most, sent in one step by mesh axis.  "
        "M: micro-batches.",
        "wait: share of the step inside communication, of the rank that waits most.",
        "bubble: idle share of the pipeline in percent, predicted/measured.",
    ]
    if any(row["crowded"] for row in rows):
        cores = result["run"]["cores"]
        lines.append(
            f"*: more ranks than the {cores} cores here; they take turns, which is in these times."
        )
    if result["run"]["load_at_start"] > result["run"]["cores"] / 2:
        load = result["run"]["load_at_start"]
        lines.append(f"The machine was busy at the start (load {load:.1f}): its times say little.")
    if any(unequal(row, kind) for row in rows for kind in ("held", "wire")):
        lines.append("!: not what the closed form says.")
    return "\n".join(lines)


def _cells(row: dict, unit: str) -> list[Text]:
    right = not differences(row)
    cells = [
        Text(row["name"], style="bold" if right else "bold red"),
        Text(str(row["layout"]["microbatches"])),
        Text(f"{row['gradient_error']:.0e}", style="green" if right else "bold red"),
    ]
    for kind, part, _ in HELD + SENT:
        figure = amount(max(row[f"{kind}_bytes"][part]), unit)
        wrong = part in unequal(row, kind)
        cells.append(Text(f"{figure}!" if wrong else figure, style="bold red" if wrong else ""))
    bubble = (row["bubble_predicted"], row["bubble_measured"])
    return [
        *cells,
        Text(f"{1e3 * row['step_seconds']:.0f}{'*' if row['crowded'] else ' '}"),
        Text(f"{row['tokens_per_second']:,.0f}"),
        Text(f"{max(row['wait_fraction']):.0%}"),
        Text("-" if None in bubble else "/".join(f"{100 * b:.0f}" for b in bubble)),
    ]


def unit_of(result: dict) -> str:
    """The unit in which the largest figure of the table is easy to read."""
    figures = [v for row in result["rows"] for v in row["held_bytes"].values()]
    largest = max(max(v) for v in figures)
    return next((unit for unit, size in UNITS.items() if largest >= size), "B")


def amount(size: int, unit: str) -> str:
    """Two or three digits that matter, 12.9, 3.42, 0.07; nothing at all is a dash."""
    value = size / UNITS[unit]
    if not size:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
