"""The result on a terminal: what ran, the table, three sentences, and whatever is wrong."""

from pathlib import Path

from rich.console import Console

from ..config import ModelConfig
from ..report.console import print_wide
from .sentences import sentences
from .table import notes, table
from .verdict import failures


def show_result(result: dict, written: list[Path], console: Console) -> None:
    console.print(headline(result) + "\n", highlight=False)
    print_wide(console, table(result))
    console.print("\n" + notes(result) + "\n", highlight=False)
    for text in sentences(result):
        console.print(text + "\n", highlight=False)
    if written:
        console.print("Written: " + ", ".join(map(str, written)), highlight=False, soft_wrap=True)
    for text in failures(result):
        console.print(text, style="bold red", highlight=False, soft_wrap=True)


def headline(result: dict) -> str:
    model, run = result["model"], result["run"]
    shape = ModelConfig(**{name: v for name, v in model.items() if name != "parameters"})
    train, text = run["train"], run["data"]
    return (
        f"{shape}: {model['parameters']:,} parameters, "
        f"{run['dtype']}; {run['ranks']} ranks, {run['cores']} cores, {run['mpi']}\n"
        f"{run['steps']} steps of {run['global_batch']} x {model['T']} tokens; {train['optimizer']}"
        f", learning rate {train['lr']:g} after {train['warmup']} steps of warm-up, clip "
        f"{train['clip']:g}\n"
        f"text: {text['name']}, {text['size']:,} bytes, sha256 {text['sha256'][:12]}"
    )


def drawn(result: dict, folder: Path, console: Console) -> list[Path]:
    """compare.png, or a line that says what it needs."""
    try:
        from .plot import plot

        return [plot(result, folder)]
    except ImportError as e:
        console.print(
            f"No compare.png: {e}. It needs the extra plot: pip install matplotlib, or --no-plot.",
            highlight=False,
            soft_wrap=True,
        )
        return []
