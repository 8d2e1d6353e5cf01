"""Is every layout equal to serial, and every byte accounted for?  Read off the result alone."""

from .proof import BOUND

CURVE = 1e-5  # float32: the rounding of sums in another order, over 20 steps
NOT_STATES = ("activations_peak", "gathered_peak")  # what kernels of another kind may change


def failures(result: dict) -> list[str]:
    """One sentence for each thing that is not as it must be: layout, tensor, error.  Empty: pass.

    Loss, gradient norm and every gradient of the float64 step within 1e-12 of serial's; the loss
    curve within 1e-5; states and wire equal to their closed forms, to the byte.
    """
    return [text for row in result["rows"] for text in differences(row) + miscounts(row)]


def differences(row: dict) -> list[str]:
    """Where a layout does not compute what serial computes."""
    checks = (
        (f"the gradient of {row['worst_gradient']}", row["gradient_error"], BOUND),
        ("the loss", row["loss_error"], BOUND),
        ("the gradient norm", row["norm_error"], BOUND),
        ("the loss curve", row["loss_curve_error"], CURVE),
    )
    return [
        f"{row['name']}: {what} differs from serial's by {error:.1e}, allowed is {bound:g}"
        for what, error, bound in checks
        if not error <= bound  # NaN differs
    ]


def miscounts(row: dict) -> list[str]:
    """Where states or wire are not what the closed form says."""
    out = []
    for kind in ("held", "wire"):
        for part in unequal(row, kind):
            if part not in NOT_STATES:
                measured, closed = row[f"{kind}_bytes"], row[f"{kind}_bytes_predicted"]
                out.append(
                    f"{row['name']}: {kind} bytes of {part}, rank by rank, are {measured[part]}, "
                    f"by the closed form {closed[part]}"
                )
    return out


def unequal(row: dict, kind: str) -> list[str]:
    """The parts of ``kind`` (held or wire) whose bytes differ from the closed form on any rank."""
    measured, closed = row[f"{kind}_bytes"], row[f"{kind}_bytes_predicted"]
    return [part for part in measured if measured[part] != closed[part]]
