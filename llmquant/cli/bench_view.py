"""A bench in the terminal, and what tuning found."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from llmquant.eval.bench import BenchReport, BenchRow
from llmquant.eval.lines import kernels_text, number, quartiles, speedup
from llmquant.eval.statistics import Spread
from llmquant.kernels.gpu.choose.config import DENSE, Config
from llmquant.machine import BUSY
from llmquant.words import bytes_text, escaped

if TYPE_CHECKING:
    from llmquant.kernels.gpu.choose.tune import Tuned, TuneReport


def print_bench(console: Console, report: BenchReport) -> None:
    """A row for each contender, then how it was measured."""
    console.print(
        f"[bold]{escaped(report.model)}[/], {number(report.parameters / 1e6)} M weights, on {_place(report)}",
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
            f"[bold]{escaped(row.name)}[/]" + ", static cache" * row.static,
            escaped(row.dtype) or "–",
            row.accuracy or "–",
            bytes_text(row.parameter_bytes),
            _cell(row.prefill, row.prefill_speedup if place else None),
            _cell(row.decode, row.decode_speedup if place else None),
            _kernels(row),
        )
    console.print(table)
    first = report.rows[0]
    rounds = f"{first.decode.runs} round{'' if first.decode.runs == 1 else 's'}"
    compared = f", and the ratio to {escaped(first.name)} round by round" if len(report.rows) > 1 else ""
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


def _place(report: BenchReport) -> str:
    cpu, threads, device = (report.machine[name] for name in ("cpu", "threads", "device"))
    return f"{escaped(cpu)}, {threads} thread{'' if threads == 1 else 's'}" if device == "cpu" else escaped(str(device))


def _kernels(row: BenchRow) -> str:
    """The accuracy has a column of its own."""
    kernels = {name.removesuffix(f", {row.accuracy}"): count for name, count in row.kernels.items()}
    return escaped(kernels_text(kernels)) or "torch"


def _cell(speed: Spread, against_first: Spread | None) -> str:
    spread_of = quartiles(speed)
    text = number(speed.median) + (f" [dim]({spread_of})[/]" if spread_of else "")
    if against_first is None:
        return text
    ratio, kind = speedup(against_first)
    return f"{text}\n[{'red' if kind == 'slower' else 'dim'}]{ratio}[/]"


def print_tuned(console: Console, report: TuneReport) -> None:
    """A row for each weight and number of rows: what ran before, what will, and what that gains."""
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("kernel, weight")
    for name in ("rows", "µs before", "µs now", "gain"):
        table.add_column(name, justify="right")
    table.add_column("configuration now")
    for case, found in groupby(report.found, key=lambda one: one.case):
        kind, n, k, unit = case.key
        label = f"[bold]{kind}[/] {n} x {k}{f', groups of {unit}' if unit else ''}"
        for one in found:
            before, now = number(one.us_untuned), number(one.us)
            table.add_row(label, str(one.rows[1]), before, now, _gain(one), _config(one.config))
            label = ""
    console.print(table)
    refused = sum((Counter(one.refused) for one in report.found), Counter())
    reasons = "; ".join(f"{count} {reason}" for reason, count in refused.most_common())
    console.print(
        f"[dim]{escaped(report.gpu)}; median of CUDA graphs over weights that no cache holds; gains below 2 % are not "
        f"taken{f'; refused: {escaped(reasons)}' if reasons else ''}[/]\nused from now on: {escaped(str(report.file))}",
        highlight=False,
    )


def _gain(one: Tuned) -> str:
    if one.us is None or one.us_untuned is None:
        return "–"
    return f"{one.us_untuned / one.us:.2f}x" if one.config != one.untuned else "[dim]as it was[/]"


def _config(config: Config | None) -> str:
    if config is None:
        return "[bold red]nothing ran[/]"
    if config == DENSE:
        return "dense weight, library"
    split = f", {config.split_k} parts of k" if config.split_k > 1 else ""
    pdl = ", pdl" if config.pdl else ""
    return f"{config.block_m} x {config.block_n}{split}, {config.warps} warps, {config.stages} stages{pdl}"
