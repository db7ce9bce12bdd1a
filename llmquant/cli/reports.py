"""What the command line shows after it worked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from llmquant.engine.run import RunResult
from llmquant.eval.lines import verdict_line
from llmquant.eval.result import EvalReport
from llmquant.eval.table import render_table
from llmquant.words import bytes_text, duration, escaped

_WORST_LAYERS = 5


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
    table = Table(title="Layers with the largest error", title_justify="left", box=None, header_style="dim")
    table.add_column("layer", overflow="fold")
    table.add_column("scheme")
    table.add_column("rounding")
    table.add_column("error", justify="right")
    for name, layer in sorted(layers.items(), key=lambda item: -item[1]["loss"])[:_WORST_LAYERS]:
        table.add_row(escaped(name), escaped(layer["scheme"]), escaped(layer["method"]), f"{layer['loss']:.3%}")
    return table


def print_reports(console: Console, reports: Sequence[EvalReport]) -> None:
    """Evaluations side by side, and a line on each."""
    console.print(render_table(reports))
    for report in reports:
        console.print(f"[bold]{escaped(report.name)}[/]: {escaped(verdict_line(report))}", highlight=False)
