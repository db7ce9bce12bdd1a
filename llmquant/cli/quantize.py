"""`llmquant quantize`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmquant.cli import arguments
from llmquant.errors import LlmquantError, OutputError
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
    parser.add_argument("--push", metavar="USER/NAME", help="publish the result there, with a card")
    parser.add_argument("--private", action="store_const", const=True, help="with --push: make the repository private")
    arguments.device(parser)
    arguments.remote_code(parser)
    arguments.quiet(parser)
    parser.set_defaults(run=run, if_interrupted="; finished blocks are kept, and --resume goes on from there")


def run(args: argparse.Namespace, console: Console) -> int:
    """Quantize and show what came out."""
    if args.private and not args.push:
        raise OutputError("--private is said of a repository; name one with --push USER/NAME")
    from llmquant.api import quantize
    from llmquant.cli.display import RunDisplay

    if args.push:
        from llmquant.hub.access import check_access

        check_access(args.push)
    with RunDisplay(console, quiet=args.quiet) as display:
        result = quantize(
            args.model, arguments.chosen_recipe(args), args.out,
            calibration=args.calibration, revision=args.revision, resume=args.resume, overwrite=args.overwrite,
            device=args.device, trust_remote_code=args.trust_remote_code, progress=display,
        )  # fmt: skip
    if "training" in result.provenance:
        from llmquant.cli.qat import print_result as print_trained

        print_trained(console, result)
    else:
        print_result(console, result)
    if args.push:
        _push(args, console, result.folder)
    return 0


def _push(args: argparse.Namespace, console: Console, folder: Path) -> None:
    from llmquant.cli.push import print_pushed
    from llmquant.hub.push import push_to_hub

    private = " --private" if args.private else ""
    later = f"{folder} is finished; llmquant push {folder} {args.push}{private} publishes it"
    args.if_interrupted = f"; {later}"
    try:
        pushed = push_to_hub(folder, args.push, private=args.private)
    except LlmquantError as error:
        raise OutputError(f"{error}\n{later}") from error
    print_pushed(console, pushed, folder)


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
    from llmquant.cli.tables import Name, plain_table

    title = "Layers with the largest error"
    table = plain_table("layer", "scheme", "rounding", ">error", fold="layer", title=title, title_justify="left")
    for name, layer in sorted(layers.items(), key=lambda item: -item[1]["loss"])[:5]:
        table.add_row(Name(name), escaped(layer["scheme"]), escaped(Path(layer["method"]).name), f"{layer['loss']:.3%}")
    return table
