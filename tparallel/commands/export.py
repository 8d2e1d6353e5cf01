"""Write a model's weights as a folder that transformers loads."""

import argparse

from ..config import TrainConfig
from ..report.console import job_console
from ..serial.parameters import count
from ..weights import export_source, opened
from ..weights.settings import architecture_for

EXAMPLES = """examples:
  tparallel export gpt2 --out copy                      a folder once more, one layout of files
  tparallel export smollm2 --out half --dtype float16   the same model, other numbers
  tparallel export runs/step-000200 --out trained       a checkpoint (runs: the newest of them)
  tparallel train --steps 100 --export trained          at the end of a run, without a checkpoint

The folder has config.json and safetensors files, and the tokenizer's files of its source; it is
complete when it has its name.  In Python:

  transformers.AutoModelForCausalLM.from_pretrained("copy")
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "source", metavar="WEIGHTS", help="a model folder, a checkpoint, or a folder of checkpoints"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="a new folder")
    parser.add_argument(
        "--tokenizer",
        metavar="DIR",
        help="the folder with the tokenizer.json that made the tokens (default: WEIGHTS)",
    )
    parser.add_argument(
        "--dtype",
        default="",
        metavar="NAME",
        help="float32, float64, bfloat16 or float16 (default: as it is stored, or was trained)",
    )


def main(args: argparse.Namespace) -> int:
    if args.dtype:
        TrainConfig(dtype=args.dtype)  # is it one, and can it be written here?
    source = opened(args.source)
    export_source(source, args.out, args.dtype, args.tokenizer)
    console = job_console(rank=0)
    console.print(
        f"{args.out}: {architecture_for(source.model).name}, {count(source.model):,} parameters, "
        f"{args.dtype or source.dtype}",
        highlight=False,
    )
    return 0
