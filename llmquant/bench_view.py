"""A bench in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llmquant.eval.bench import BenchReport, BenchRow
from llmquant.eval.lines import bytes_text, kernels_text, number, quartiles, speedup
from llmquant.eval.machine import BUSY
from llmquant.eval.statistics import Spread


def print_bench(console: Console, report: BenchReport) -> None:
    """A row for each contender, then how it was measured."""
    threads = report.machine["threads"]
    console.print(
        f"[bold]{escape(report.model)}[/], {number(report.parameters / 1e6)} M weights, on {report.machine['cpu']}, "
        f"{threads} thread{'' if threads == 1 else 's'}",
        highlight=False,
    )
    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in ("weights", "computes in", "accuracy"):
        table.add_column(name)
    for name in ("memory", "prefill tok/s", "decode tok/s"):
        table.add_column(name, justify="right")
    table.add_column("kernels", overflow="fold")
    for place, row in enumerate(report.rows):
        table.add_row(
            f"[bold]{escape(row.name)}[/]",
            row.dtype,
            row.accuracy or "–",
            bytes_text(row.parameter_bytes),
            _cell(row.prefill, row.prefill_speedup if place else None),
            _cell(row.decode, row.decode_speedup if place else None),
            _kernels(row),
        )
    console.print(table)
    first = report.rows[0]
    rounds = f"{first.decode.runs} round{'' if first.decode.runs == 1 else 's'}"
    compared = f", and the ratio to {escape(first.name)} round by round" if len(report.rows) > 1 else ""
    console.print(
        f"[dim]batch {report.batch_size}, prompt of {report.prompt_tokens} tokens, then {report.decode_tokens} one by "
        f"one; {rounds}, each with all rows in turn; median, (quartiles){compared}[/]",
        highlight=False,
    )
    if report.others is not None and report.others > BUSY:
        console.print(
            f"[bold yellow]warning:[/] other programs kept {report.others:.0%} of the processors busy; the ratios hold "
            "better than the speeds\n  [bold]do:[/] run it again when the machine is quiet",
            highlight=False,
        )


def _kernels(row: BenchRow) -> str:
    """The accuracy has a column of its own."""
    shown = {name.removesuffix(f", {row.accuracy}"): count for name, count in row.kernels.items()}
    return escape(kernels_text(shown)) or "torch"


def _cell(speed: Spread, against_first: Spread | None) -> str:
    text = f"{number(speed.median)} [dim]({quartiles(speed)})[/]"
    if against_first is None:
        return text
    ratio, kind = speedup(against_first)
    return f"{text}\n[{'red' if kind == 'slower' else 'dim'}]{ratio}[/]"
