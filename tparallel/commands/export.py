"""Write a model's weights as a folder that transformers loads."""

import argparse

from ..errors import WeightsError
from ..report.console import job_console
from ..serial.parameters import count
from ..weights import Folder, export_folder

EXAMPLES = """examples:
  tparallel export gpt2 --out copy                      a folder once more, one layout of files
  tparallel export smollm2 --out half --dtype float16   the same model, other numbers
  tparallel train --steps 100 --export trained          the way to weights of your own training

The folder has config.json and safetensors files, and the tokenizer's files of its source; it is
complete when it has its name.  In Python:

  transformers.AutoModelForCausalLM.from_pretrained("copy")
"""
DTYPES = ("float32", "float64", "bfloat16", "float16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    parser.add_argument("source", metavar="WEIGHTS", help="a model folder")
    parser.add_argument("--out", required=True, metavar="DIR", help="a new folder")
    parser.add_argument(
        "--dtype",
        default="",
        metavar="NAME",
        help=f"{', '.join(DTYPES)} (default: the widest in which a tensor is stored)",
    )


def main(args: argparse.Namespace) -> int:
    if args.dtype not in ("", *DTYPES):
        raise WeightsError(
            f"weights are stored in {', '.join(DTYPES)}: --dtype {args.dtype}. Use one of them."
        )
    folder = Folder(args.source)
    export_folder(folder, args.out, args.dtype)
    console = job_console(rank=0)
    console.print(
        f"{args.out}: {folder.architecture.name}, {count(folder.model):,} parameters, "
        f"{args.dtype or folder.dtype}",
        highlight=False,
    )
    return 0
