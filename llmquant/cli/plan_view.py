"""A plan as a table in the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from llmquant.kernels.backend import kernel_on
from llmquant.recipe.plan import NO_RULE, Plan
from llmquant.recipe.summary import summarize
from llmquant.spec import Scheme
from llmquant.words import bytes_text, dtype_name, escaped

_WIDE = 100  # columns


@dataclass(frozen=True, slots=True)
class _Line:
    name: str
    count: int
    shape: tuple[int, ...]
    scheme: Scheme
    rounding: str
    rule: str
    note: str
    before: int
    after: int
    bits: float


def print_plan(console: Console, plan: Plan, *, full: bool = False) -> None:
    """Print what each module becomes, by which rule, what it costs, what runs it, and who can load the result.

    Args:
        console: is printed to.
        plan: the plan.
        full: a line for each module; otherwise equal modules of many blocks share one.
    """
    inventory = plan.inventory
    console.print(
        f"[bold]{escaped(inventory.architecture)}[/]  {inventory.parameters:,} parameters, {inventory.blocks} blocks, "
        f"{dtype_name(inventory.dtype)}"
    )
    lines = _modules(plan) if full else _kinds(plan)
    console.print(_table(lines, wide=console.width >= _WIDE))
    console.print(
        f"[bold]{bytes_text(plan.bytes_before)} -> {bytes_text(plan.bytes_after)}[/], "
        f"{plan.bits_per_weight:.3f} bits per weight over everything"
    )
    for warning in plan.warnings:
        console.print(f"[bold yellow]warning[/]  {escaped(warning)}", highlight=False)
    console.print(f"\nrecipe [bold]{escaped(plan.recipe.name)}[/]")
    for number, rule in enumerate(plan.recipe.rules, 1):
        console.print(f"  {number}  {escaped(str(rule))}", highlight=False)
    for note in dict.fromkeys(line.note for line in lines if line.note):
        console.print(f"  [yellow]note[/]  {escaped(note)}", highlight=False)
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        console.print(f"\nkernels on this machine's {'GPU' if device == 'cuda' else 'CPU'}")
        for scheme in dict.fromkeys(row.scheme for row in plan.quantized):
            console.print(f"  {scheme}  {escaped(kernel_on(scheme, device))}", highlight=False)
    console.print("\nwho loads the result")
    for reader, verdict in plan.format.readers(plan).items():
        mark = "[green]yes[/]" if verdict.ok else "[red]no [/]"
        console.print(f"  {mark}  {reader:<13} {escaped(verdict.note)}", highlight=False)


def _kinds(plan: Plan) -> list[_Line]:
    return [
        _Line(
            row.name, row.count, row.shape, row.scheme, row.rounding, row.rule, row.note,
            row.bytes_before, row.bytes_after, row.bits_per_weight,
        )
        for row in summarize(plan)
    ]  # fmt: skip


def _modules(plan: Plan) -> list[_Line]:
    return [
        _Line(
            row.module.name, 1, row.module.shape, row.scheme, row.rounding.method if row.rounding else "", row.rule,
            row.note, row.bytes_before, row.bytes_after, row.bits_per_weight,
        )
        for row in plan.rows
    ]  # fmt: skip


def _table(lines: Iterable[_Line], *, wide: bool) -> Table:
    """A narrow terminal gets no rounding and no bytes before, so that the names stay in one piece."""
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("module", overflow="fold")
    table.add_column("shape", no_wrap=True)
    for name in ("scheme", "rounding") if wide else ("scheme",):
        table.add_column(name, no_wrap=True)
    for name in ("rule", "before", "after", "bits") if wide else ("rule", "after", "bits"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        count = f"{line.count} x " if line.count > 1 else ""
        table.add_row(
            escaped(line.name),
            count + "x".join(map(str, line.shape)),
            "[dim]keep[/]" if line.scheme.is_keep else f"[bold]{line.scheme}[/]",
            *([line.rounding] if wide else []),
            "-" if line.rule == NO_RULE else line.rule.split(":")[0].removeprefix("rule "),
            *([bytes_text(line.before)] if wide else []),
            bytes_text(line.after),
            f"{line.bits:.2f}" if line.bits else "tied",
        )
    return table
