"""Several evaluations against one baseline as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from llmquant.errors import DataError
from llmquant.eval.lines import bytes_text, interval, kernels_line, number, percent, speed_text, speedup
from llmquant.eval.result import EvalReport, ModelSection, Speed
from llmquant.readable import shown


def check_comparable(reports: Sequence[EvalReport]) -> None:
    """Refuse reports that do not belong into one table.

    Raises:
        DataError: if there is none, or they differ in baseline, text or windows.
    """
    if not reports:
        raise DataError("no evaluation to show")
    first = reports[0]
    for report in reports[1:]:
        if report.baseline.name != first.baseline.name or report.protocol.data_hash != first.protocol.data_hash:
            raise DataError(
                f"{report.name!r} was measured against {report.baseline.name!r} on {report.protocol.source!r}, "
                f"{first.name!r} against {first.baseline.name!r} on {first.protocol.source!r} "
                "(or on other windows); evaluate both on the same text and baseline"
            )


def render_table(reports: Sequence[EvalReport]) -> Table:
    """The baseline's row first, then one row per report, in the order given.

    Raises:
        DataError: if the reports are not comparable (see `check_comparable`).
    """
    check_comparable(reports)
    timed = any(report.speed_protocol for report in reports)
    protocol = reports[0].protocol
    table = Table(
        title=shown(f"against {reports[0].baseline.name}, {protocol.scored_tokens} tokens of {protocol.source}"),
        caption=_caption(reports),
        caption_justify="left",
    )
    table.add_column("model")
    columns = [
        "size",
        "bits/weight",
        "perplexity",
        "KL",
        "top-1",
        *(["prefill tok/s", "decode tok/s"] if timed else []),
    ]
    for column in columns:
        table.add_column(column, justify="right")
    table.add_column("verdict")
    first = reports[0].baseline
    table.add_row(shown(first.name), *_size(first), "–", "–", *(_speed_cells(first.speed) if timed else []), "baseline")
    for report in reports:
        table.add_row(*_row(report, timed))
    return table


def _caption(reports: Sequence[EvalReport]) -> str:
    """How it was measured, then the kernels of each model."""
    protocol = reports[0].protocol
    measured = (
        f"95 % intervals; {protocol.windows} windows of {protocol.length}, stride {protocol.stride}, "
        f"BOS {'yes' if protocol.add_bos else 'no'}; text {protocol.data_hash[:15]}"
    )
    lines = ((report.name, kernels_line(report)) for report in reports)
    return shown("\n".join([measured, *(f"{name}: {line}" for name, line in lines if line)]))


def _size(section: ModelSection) -> list[str]:
    perplexity = f"{number(section.perplexity.value, 4)}\n[dim]{shown(interval(section.perplexity))}[/]"
    return [bytes_text(section.checkpoint_bytes), number(section.bits_per_weight), perplexity]


def _row(report: EvalReport, timed: bool) -> list[str]:
    kl = report.comparison.kl
    error = "" if kl.standard_error is None else f"\n[dim]± {number(kl.standard_error, 2)}[/]"
    cells = [shown(report.name), *_size(report.quantized), number(kl.mean) + error]
    cells.append(percent(report.comparison.top1_agreement.value))
    if timed:
        cells += _speed_cells(report.quantized.speed, report)
    failed = [each.name for each in report.budget if not each.passed]
    return [*cells, f"[red]over budget: {', '.join(failed)}[/]" if failed else report.comparison.verdict]


def _speed_cells(speed: Speed | None, report: EvalReport | None = None) -> list[str]:
    if speed is None:
        return ["–", "–"]
    cells = [speed_text(each) for each in (speed.prefill, speed.decode)]
    if report is None or report.speed_protocol is None:
        return cells
    ratios = [speedup(ratio) for ratio in (report.speed_protocol.prefill_speedup, report.speed_protocol.decode_speedup)]
    marks = [f"[red]slower: {text}[/]" if kind == "slower" else f"[dim]{text}[/]" for text, kind in ratios]
    return [f"{cell}\n{mark}" for cell, mark in zip(cells, marks, strict=True)]
