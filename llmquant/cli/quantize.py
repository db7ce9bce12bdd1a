"""`llmquant quantize`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmquant.cli import arguments
from llmquant.words import bytes_text, duration, escaped

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from llmquant.engine.run import RunResult


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

    with RunDisplay(console, quiet=args.quiet) as display:
        result = quantize(
            args.model, args.recipe, args.out,
            calibration=args.calibration, revision=args.revision, resume=args.resume, overwrite=args.overwrite,
            device=args.device, trust_remote_code=args.trust_remote_code, progress=display,
        )  # fmt: skip
    print_result(console, result)
    return 0


def print_result(console: Console, result: RunResult) -> None:
    """The end of a run: where it is, how large, which layers lost most, and what was unusual."""
    facts = result.provenance
    plan = facts["plan"]
    console.print(
        f"[bold green]{escaped(result.folder)}[/]  {bytes_text(plan['bytes_before'])} -> "
        f"{bytes_text(plan['bytes_after'])}, {plan['bits_per_weight']:.2f} bits per weight; "
        f"{facts['verified_tensors']} tensors verified; "
        f"in {duration(facts['seconds'])}, peak memory {bytes_text(facts['peak_memory_bytes'])}",
        soft_wrap=not console.is_terminal,
    )
    if facts["layers"]:
        console.print(_worst_layers(facts["layers"]))
    for name, count in facts["counters"].items():
        console.print(f"[yellow]note:[/] {escaped(name.replace('_', ' '))}: {count}")


def _worst_layers(layers: dict[str, dict[str, Any]]) -> Table:
    from llmquant.cli.tables import plain_table

    title = "Layers with the largest error"
    table = plain_table("layer", "scheme", "rounding", ">error", fold="layer", title=title, title_justify="left")
    for name, layer in sorted(layers.items(), key=lambda item: -item[1]["loss"])[:5]:
        table.add_row(escaped(name), escaped(layer["scheme"]), escaped(layer["method"]), f"{layer['loss']:.3%}")
    return table
