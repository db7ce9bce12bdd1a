"""`llmquant qat`."""

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
    parser = commands.add_parser("qat", help="train a checkpoint as it will be read, into a quantized folder")
    arguments.model_and_recipe(parser, "model folder or hub id")
    parser.add_argument("--train", metavar="TEXT", help="a text file, builtin:NAME or hub:NAME (what the recipe names)")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="the new folder")
    parser.add_argument("--valid", metavar="TEXT", help="what is best on this is kept (the end of --train is held out)")
    parser.add_argument("--teacher", metavar="MODEL", help="whose outputs are aimed at (MODEL before quantization)")
    parser.add_argument("--calibration", metavar="TEXT", help="calibrate on this file or hub:NAME instead")
    parser.add_argument("--steps", type=arguments.count, metavar="N", help="in place of the recipe's")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    parser.add_argument("--overwrite", action="store_true", help="replace a finished result or drop an interrupted run")
    parser.add_argument(
        "--batch-size-per-device", type=arguments.count, metavar="N", help="rows at once; the batch is the recipe's"
    )
    parser.add_argument("--save-steps", type=arguments.count, metavar="N", help="between checkpoints (a tenth of all)")
    parser.add_argument("--recompute", action="store_true", help="less memory, more time (gradient checkpointing)")
    arguments.device(parser)
    arguments.remote_code(parser)
    arguments.quiet(parser)
    parser.set_defaults(run=run, if_interrupted="; blocks and checkpoints are kept, and --resume goes on from there")


def run(args: argparse.Namespace, console: Console) -> int:
    """Train and show what came out."""
    from llmquant.cli.display import RunDisplay
    from llmquant.training.arguments import Options, rank
    from llmquant.training.run import qat

    options = Options(args.batch_size_per_device, args.recompute, args.save_steps)
    with RunDisplay(console, quiet=args.quiet or rank() > 0) as display:
        result = qat(
            args.model, arguments.chosen_recipe(args), args.train, args.out,
            valid=args.valid, teacher=args.teacher, calibration=args.calibration, steps=args.steps, options=options,
            resume=args.resume, overwrite=args.overwrite, device=args.device,
            trust_remote_code=args.trust_remote_code, progress=display,
        )  # fmt: skip
    if rank() == 0:
        print_result(console, result)
    return 0


def print_result(console: Console, result: RunResult) -> None:
    """The end of a run: where it is, how large, what training cost, and what it brought."""
    facts = result.provenance
    plan, training = facts["plan"], facts["training"]
    console.print(
        f"[bold green]{escaped(result.folder)}[/]  {bytes_text(plan['bytes_before'])} -> "
        f"{bytes_text(plan['bytes_after'])}, {plan['bits_per_weight']:.2f} bits per weight; "
        f"{facts['verified_tensors']} tensors verified; trained on {training['tokens']:,} tokens "
        f"in {duration(facts['seconds'])}, peak memory {bytes_text(facts['peak_memory_bytes'])}",
        soft_wrap=not console.is_terminal,
    )
    console.print(_course(training))


def _course(training: dict[str, Any]) -> Table:
    """How the loss on held-out text and the grid moved, a row for each time that was measured."""
    from llmquant.cli.tables import plain_table

    title = f"Loss on held-out text ({training['valid_windows']} windows of {training['length']} tokens)"
    table = plain_table(
        ">step", ">held out", ">training", ">codes flipped", ">scale drift", "", title=title, title_justify="left"
    )
    table.add_row("0", f"{training['loss_before']:.4f}", "", "", "", "rounded")
    moved: dict[str, Any] = {}
    for entry in training["log"]:
        moved = entry if "loss" in entry else moved
        if "eval_loss" not in entry or not moved:
            continue
        kept = "kept" if entry["step"] == training["best_step"] else ""
        course = f"{moved['loss']:.4f}", f"{moved['codes_flipped']:.2%}", f"{moved['scale_drift']:.2%}"
        table.add_row(str(entry["step"]), f"{entry['eval_loss']:.4f}", *course, kept)
    return table
