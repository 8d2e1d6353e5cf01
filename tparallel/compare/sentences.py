"""Three plain sentences that say what the table shows: equality, bytes, time.

Every number and every name in them is taken from the result.
"""

from .table import amount, unit_of
from .verdict import differences, unequal


def sentences(result: dict) -> list[str]:
    return [_equality(result), _bytes(result), _time(result)]


def held(row: dict) -> list[int]:
    """Bytes that each rank holds in all, at its peak."""
    return [sum(kinds) for kinds in zip(*row["held_bytes"].values())]


def sent(row: dict) -> list[int]:
    """Bytes that each rank sends in a step, over all axes."""
    return [sum(axes) for axes in zip(*row["wire_bytes"].values())]


def _equality(result: dict) -> str:
    rows, steps = result["rows"], result["run"]["steps"]
    wrong = [texts[0] for texts in map(differences, rows) if texts]
    if wrong:
        return f"Not equal: {len(wrong)} of {_count(rows)} leave serial; {'; '.join(wrong[:3])}."
    row = max(rows, key=lambda row: row["gradient_error"])
    curve = max(row["loss_curve_error"] for row in rows)
    return (
        f"Equal: {_count(rows)}, the loss and every gradient of one float64 step within "
        f"{row['gradient_error']:.0e} of serial's (worst: {row['worst_gradient']}, {row['name']}); "
        f"{steps} {result['run']['dtype']} steps take the loss from {row['loss'][0]:.2f} to "
        f"{row['loss'][-1]:.2f}, never further than {curve:.0e} from serial's."
    )


def _bytes(result: dict) -> str:
    rows, unit = result["rows"], unit_of(result)
    least = min(rows, key=lambda row: max(held(row)))
    text = f"Bytes: the fullest rank of {least['name']} holds {_size(max(held(least)), unit)}"
    one = next((row for row in rows if row["name"] == "serial"), None)
    if one and one is not least:
        share = max(held(least)) / max(held(one))
        text += f", the least, {share:.0%} of serial's {_size(max(held(one)), unit)}"
    parallel = [row for row in rows if max(sent(row))]
    if parallel:
        most, few = (f(parallel, key=lambda row: max(sent(row))) for f in (max, min))
        text += f"; {most['name']} sends most, {_size(max(sent(most)), unit)} a step"
        if few is not most:
            text += f", {few['name']} least, {_size(max(sent(few)), unit)}"
    off = [row["name"] for row in rows if unequal(row, "held") or unequal(row, "wire")]
    if off:
        return text + f"; not what the closed forms say: {', '.join(off)}."
    return text + "; all of it is what the closed forms say, to the byte."


def _time(result: dict) -> str:
    rows, run = result["rows"], result["run"]
    fast, slow = (f(rows, key=lambda row: row["tokens_per_second"]) for f in (max, min))
    rank = " fastest," if slow is not fast else ""
    text = f"Time: {fast['name']} trains{rank} {fast['tokens_per_second']:,.0f} tokens/s"
    one = next((row for row in rows if row["name"] == "serial"), None)
    if one and one is not fast:
        text += f", {fast['tokens_per_second'] / one['tokens_per_second']:.2f} times serial"
    if slow is not fast:
        text += (
            f"; {slow['name']} slowest, {slow['tokens_per_second']:,.0f}, with a rank that spends "
            f"{max(slow['wait_fraction']):.0%} of the step inside communication"
        )
    crowded = [row["layout"] for row in rows if row["crowded"]]
    if crowded:
        text += (
            f"; {run['cores']} cores are shared by more ranks in {len(crowded)} of {_count(rows)}, "
            "so this says what splitting costs here, not what it gains on its own cores"
        )
    return text + "."


def _count(rows: list) -> str:
    return f"{len(rows)} layout{'s' if len(rows) > 1 else ''}"


def _size(size: int, unit: str) -> str:
    return f"{amount(size, unit)} {unit}" if size else "nothing"
