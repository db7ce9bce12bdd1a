"""`llmquant plan`: what each module would become, as a table."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from llmquant.cli import arguments
from llmquant.words import bytes_text, dtype_name, escaped

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from llmquant.recipe.plan import Plan
    from llmquant.recipe.schema import Recipe

_WIDE = 100  # columns


def add(commands: arguments.Commands) -> None:
    """Describe the arguments."""
    parser = commands.add_parser("plan", help="what each tensor would become, before any work")
    arguments.model_and_recipe(parser, "model folder, config.json or hub id")
    parser.add_argument("--full", action="store_true", help="one line for each module, not for each kind")
    arguments.json_target(parser, "the plan")
    arguments.remote_code(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """Plan, write, show."""
    arguments.check_targets(args.json)
    from llmquant.api import plan

    result = plan(args.model, arguments.chosen_recipe(args), trust_remote_code=args.trust_remote_code)
    arguments.write_json(args.json, json.dumps(result.to_dict(), indent=2) + "\n")
    print_plan(console, result, full=args.full)
    return 0


def print_plan(console: Console, plan: Plan, *, full: bool = False) -> None:
    """Print what each module becomes, by which rule, what it costs, what runs it, and who can load the result.

    `full` has a line for each module; otherwise equal modules of many blocks share one.
    """
    import torch

    from llmquant.kernels.backend import kernel_on

    inventory = plan.inventory
    console.print(
        f"[bold]{escaped(inventory.architecture)}[/]  {inventory.parameters:,} parameters, {inventory.blocks} blocks, "
        f"{dtype_name(inventory.dtype)}"
    )
    console.print(_table(plan, full=full, wide=console.width >= _WIDE))
    console.print(
        f"[bold]{bytes_text(plan.bytes_before)} -> {bytes_text(plan.bytes_after)}[/], "
        f"{plan.bits_per_weight:.3f} bits per weight over everything"
    )
    for warning in plan.warnings:
        console.print(f"[bold yellow]warning[/]  {escaped(warning)}", highlight=False)
    console.print(f"\nrecipe [bold]{escaped(plan.recipe.name)}[/]")
    for number, rule in enumerate(plan.recipe.rules, 1):
        console.print(f"  {number}  {escaped(str(rule))}", highlight=False)
    for kind, text in _steps(plan.recipe):
        console.print(f"  {kind:<12} {escaped(text)}", highlight=False)
    for note in dict.fromkeys(row.note for row in plan.rows if row.note):
        console.print(f"  [yellow]note[/]  {escaped(note)}", highlight=False)
    readers = plan.format.readers(plan)
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    for device in devices if readers["llmquant"].ok else ():
        console.print(f"\nkernels on this machine's {'GPU' if device == 'cuda' else 'CPU'}")
        for scheme in dict.fromkeys(row.scheme for row in plan.quantized):
            console.print(f"  {scheme}  {escaped(kernel_on(scheme, device))}", highlight=False)
    console.print("\nwho loads the result")
    for reader, verdict in readers.items():
        mark = "[green]yes[/]" if verdict.ok else "[red]no [/]"
        console.print(f"  {mark}  {reader:<13} {escaped(verdict.note)}", highlight=False)


def _steps(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """What the rules do not say: what is done to each block beside rounding, and on which text."""
    for kind, steps in (("transform", recipe.transforms), ("tuning", recipe.tuning)):
        for step in steps:
            yield kind, ", ".join([step.method, *(f"{key} {value}" for key, value in step.options.items())])
    if recipe.calibration:
        text = recipe.calibration
        yield "calibration", f"{text.dataset}, {text.samples} x {text.length} tokens"
    if qat := recipe.qat:
        what = "scales" if qat.ranges == "scales-only" else f"lora of rank {qat.lora.rank}" if qat.lora else "weights"
        end = f"epochs {qat.epochs:g}" + (f", at most {qat.steps} steps" if qat.steps else "")
        by = "by llmquant qat" if recipe.training_text is None else f"on {recipe.training_text}"
        yield "training", f"{by}: {what}, ranges {qat.ranges}, {qat.batch} x {qat.length} tokens a step, {end}"


def _table(plan: Plan, *, full: bool, wide: bool) -> Table:
    """A narrow terminal gets no rounding, rule and bytes before, so that the names stay in one piece."""
    from llmquant.cli.tables import Name, plain_table
    from llmquant.recipe.plan import bits_text, short_rule
    from llmquant.recipe.summary import summarize

    heads = ["module", "shape", "scheme", "rounding", ">rule", ">before", ">after", ">bits"]
    if full:
        lines = [
            (row, row.module.name, 1, row.module.shape, row.rounding.method if row.rounding else "")
            for row in plan.rows
        ]
    else:
        lines = [(row, row.name, row.count, row.shape, row.rounding) for row in summarize(plan.rows)]
    shown = heads if wide else [head for head in heads if head not in ("rounding", ">rule", ">before")]
    table = plain_table(*shown, fold="module")
    for row, name, count, shape, rounding in lines:
        cells = (
            Name(name),
            (f"{count} x " if count > 1 else "") + "x".join(map(str, shape)),
            "[dim]keep[/]" if row.scheme.is_keep else f"[bold]{row.scheme}[/]",
            rounding,
            short_rule(row.rule),
            bytes_text(row.bytes_before),
            bytes_text(row.bytes_after),
            bits_text(row),
        )
        table.add_row(*(cell for head, cell in zip(heads, cells, strict=True) if head in shown))
    return table
