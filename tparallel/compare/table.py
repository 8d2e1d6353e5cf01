"""The result as one table: a layout a row, at most 100 columns wide."""

from rich import box
from rich.table import Table
from rich.text import Text

from .verdict import differences, unequal

# (part, the two lines of its heading); the upper lines read on from column to column
HELD = (
    ("params", "  held\n  param"),
    ("grads", "per\ngrad"),
    ("optimizer", "rank\nopt"),
    ("activations_peak", "{unit}\nact"),
)
SENT = (("tp", " sent\n  tp"), ("pp", "per\npp"), ("dp", "step\ndp"))
PART_OF = {"near": "dp", "far": "dp"}  # ZeRO in groups cuts dp in two
NAME = 26  # columns of "tp=2 pp=2 dp=2 1f1b zero=3"; a longer name takes two lines
UNITS = {"GB": 10**9, "MB": 10**6, "kB": 10**3, "B": 1}


def table(result: dict) -> Table:
    """Bytes are those of the rank that has most; a figure that is not its closed form is red."""
    unit = unit_of(result)
    out = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    out.add_column("\nlayout", max_width=NAME)
    right = ["\nM", "grad\nerror", *(title.format(unit=unit) for _, title in HELD + SENT)]
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
    if any(max(row["held_bytes"]["gathered_peak"]) for row in rows):
        lines.append("param: without the layers that ZeRO 3 gathers for use; compare.png has them.")
    lines += _pool_note(rows, unit)
    if any(unequal(row, kind) for row in rows for kind in ("held", "wire")):
        lines.append("!: not what the closed form says.")
    return "\n".join(lines)


def _pool_note(rows: list[dict], unit: str) -> list[str]:
    """Of a run on GPUs: the fullest pool of each layout, the least and the most of them."""
    on_gpus = [row for row in rows if any(row["pool_peak_bytes"])]
    peaks = {max(row["pool_peak_bytes"]): row["name"] for row in on_gpus}
    if not peaks:
        return []
    ends = (f"{amount(size, unit)} {unit} ({peaks[size]})" for size in (min(peaks), max(peaks)))
    text = "Device memory at its fullest, temporary arrays included: from"
    return [f"{text} {' to '.join(ends)}."]


def _cells(row: dict, unit: str) -> list[Text]:
    right = not differences(row)
    cells = [
        Text(row["name"], style="bold" if right else "bold red"),
        Text(str(row["layout"]["microbatches"])),
        Text(f"{row['gradient_error']:.0e}", style="green" if right else "bold red"),
    ]
    figures = {**row["held_bytes"], **by_axis(row["wire_bytes"])}
    off = {PART_OF.get(part, part) for kind in ("held", "wire") for part in unequal(row, kind)}
    for part, _ in HELD + SENT:
        figure, wrong = amount(max(figures[part]), unit), part in off
        cells.append(Text(f"{figure}!" if wrong else figure, style="bold red" if wrong else ""))
    bubble = (row["bubble_predicted"], row["bubble_measured"])
    return [
        *cells,
        Text(f"{1e3 * row['step_seconds']:.0f}{'*' if row['crowded'] else ' '}"),
        Text(f"{row['tokens_per_second']:,.0f}"),
        Text(f"{max(row['wait_fraction']):.0%}"),
        Text("-" if None in bubble else "/".join(f"{100 * b:.0f}" for b in bubble)),
    ]


def by_axis(wire: dict) -> dict:
    """Bytes sent by each rank over tp, pp and dp, whatever dp consists of."""
    out: dict = {}
    for axis, sent in wire.items():
        whole = PART_OF.get(axis, axis)
        out[whole] = [a + b for a, b in zip(sent, out.get(whole, [0] * len(sent)))]
    return out


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
