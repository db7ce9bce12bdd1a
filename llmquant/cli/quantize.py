"""`llmquant quantize`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from llmquant.cli import arguments

if TYPE_CHECKING:
    from rich.console import Console


def add(commands: arguments.Commands) -> None:
    """Describe the arguments."""
    parser = commands.add_parser("quantize", help="quantize a checkpoint into a folder")
    arguments.model_and_recipe(parser, "model folder or hub id")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="the new folder")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    parser.add_argument("--overwrite", action="store_true", help="replace a finished result or drop an interrupted run")
    parser.add_argument("--calibration", metavar="TEXT", help="calibrate on this file or hub:NAME instead")
    parser.add_argument("--revision", help="branch, tag or commit of a hub model")
    arguments.device(parser)
    arguments.remote_code(parser)
    arguments.quiet(parser)
    parser.set_defaults(run=run, if_interrupted="; finished blocks are kept, and --resume goes on from there")


def run(args: argparse.Namespace, console: Console) -> int:
    """Quantize and show what came out."""
    from llmquant.api import quantize
    from llmquant.cli.display import RunDisplay
    from llmquant.cli.reports import print_result

    with RunDisplay(console, quiet=args.quiet) as display:
        result = quantize(
            args.model, args.recipe, args.out,
            calibration=args.calibration, revision=args.revision, resume=args.resume, overwrite=args.overwrite,
            device=args.device, trust_remote_code=args.trust_remote_code, progress=display,
        )  # fmt: skip
    print_result(console, result)
    return 0
