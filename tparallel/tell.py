"""Printing from several ranks at once, readably: in rank order, from one process."""


def once(comm, *lines: str) -> None:
    """Print on rank 0 alone."""
    if comm.rank == 0:
        print("\n".join(lines), flush=True)


def everyone(comm, text: str) -> None:
    """Print every rank's text, rank 0's first.  Every rank must call it."""
    texts = comm.gather(text)
    if texts:
        print("\n".join(f"rank {r}: {t}" for r, t in enumerate(texts)), flush=True)
