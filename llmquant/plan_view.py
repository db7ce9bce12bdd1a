"""A plan as a table in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llmquant.formats.profile import readers
from llmquant.kernels.linear_int import kernel_name
from llmquant.recipe.plan import Plan
from llmquant.recipe.summary import SummaryRow, summarize
from llmquant.spec import Scheme


def print_plan(console: Console, plan: Plan, *, full: bool = False) -> None:
    """Print what each module becomes, what it costs, and who can load the result.

    Args:
        console: is printed to.
        plan: the plan.
        full: a line for each module; otherwise equal modules of many blocks share one.
    """
    inventory = plan.inventory
    console.print(
        f"[bold]{inventory.architecture}[/]  {inventory.parameters:,} parameters, {inventory.blocks} blocks, "
        f"{str(inventory.dtype).removeprefix('torch.')}   recipe [bold]{escape(plan.recipe.name)}[/]"
    )
    console.print(_full_table(plan) if full else _summary_table(summarize(plan)))
    console.print(
        f"[bold]{_size(plan.bytes_before)} -> {_size(plan.bytes_after)}[/], {plan.bits_per_weight:.3f} bits per weight "
        "over everything"
    )
    for reader, verdict in readers(plan).items():
        mark = "[green]yes[/]" if verdict.ok else "[red]no[/]"
        console.print(f"  {reader:24} {mark}  {escape(verdict.note)}")


def _summary_table(rows: list[SummaryRow]) -> Table:
    table = _new_table()
    for row in rows:
        count = f"{row.count} x " if row.count > 1 else ""
        table.add_row(
            escape(row.name), count + _shape(row.shape), _scheme(row.scheme), row.rounding,
            escape(_note(row.rule, row.note)), _size(row.bytes_before), _size(row.bytes_after),
            f"{row.bits_per_weight:.2f}", _kernel(row.scheme),
        )  # fmt: skip
    return table


def _full_table(plan: Plan) -> Table:
    table = _new_table()
    for row in plan.rows:
        method = row.rounding.method if row.rounding else ""
        table.add_row(
            escape(row.module.name), _shape(row.module.shape), _scheme(row.scheme), method,
            escape(_note(row.rule, row.note)), _size(row.bytes_before), _size(row.bytes_after),
            f"{row.bits_per_weight:.2f}", _kernel(row.scheme),
        )  # fmt: skip
    return table


def _new_table() -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in ("module", "shape", "scheme", "rounding", "decided by"):
        table.add_column(name, overflow="fold")
    for name in ("before", "after", "bits/w"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("kernel here", overflow="fold")
    return table


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _scheme(scheme: Scheme) -> str:
    return "[dim]keep[/]" if scheme.is_keep else f"[bold]{scheme}[/]"


def _note(rule: str, note: str) -> str:
    return f"{rule} ({note})" if note else rule


def _kernel(scheme: Scheme) -> str:
    if scheme.is_keep:
        return ""
    return "compressed-tensors" if scheme.activations else kernel_name(scheme.bits, "cpu")


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"
