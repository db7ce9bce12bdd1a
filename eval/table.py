"""Several evaluations against one baseline as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from llmquant.errors import DataError
from llmquant.eval.lines import (
    bytes_text,
    interval,
    kernels_line,
    number,
    percent,
    plus_minus,
    speed_comparisons,
    verdict_text,
)
from llmquant.eval.result import EvalReport, ModelSection
from llmquant.words import printable


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


def render_table(reports: Sequence[EvalReport]) -> Group:
    """What was lost: the baseline's row, then one per report in the order given; then how fast, and how measured.

    Names come from outside, so everything is `Text`, which knows no markup.

    Raises:
        DataError: if the reports are not comparable (see `check_comparable`).
    """
    check_comparable(reports)
    parts = [_loss_table(reports)]
    if any(report.speed_protocol for report in reports):
        parts.append(_speed_table(reports))
    return Group(*parts, Text(_caption(reports), style="dim"))


def _loss_table(reports: Sequence[EvalReport]) -> Table:
    first, protocol = reports[0], reports[0].protocol
    title = f"against {first.baseline.name}, {protocol.scored_tokens} tokens of {protocol.source}"
    table = Table(title=Text(printable(title)))
    table.add_column("model", overflow="fold")
    for column in ("size", "bits / weight", "perplexity", "KL", "top-1"):
        table.add_column(column, justify="right", min_width=len(column) if column == "perplexity" else None)
    table.add_column("loss of perplexity", min_width=len("perplexity"))
    cells = [*_size(first.baseline), Text("–"), Text("–"), Text("baseline")]
    table.add_row(Text(printable(first.baseline.name)), *cells)
    for report in reports:
        table.add_row(*_row(report))
    return table


def _speed_table(reports: Sequence[EvalReport]) -> Table:
    """A row for each phase and dense dtype; the ratio is that of the rounds in which both ran."""
    table = Table(title=Text("speed, as a multiple of the baseline's"))
    table.add_column("model", overflow="fold")
    table.add_column("phase")
    table.add_column("ratio", justify="right")
    table.add_column("of the baseline in", min_width=len("checkpoint's,"))
    table.add_column("tokens per second", justify="right")
    table.add_column("measured in", justify="right")
    for report in reports:
        shown = printable(report.name)
        for each in speed_comparisons(report):
            slower = each.kind == "slower"
            ratio = Text(f"slower: {each.ratio}" if slower else each.ratio, style="red" if slower else "")
            table.add_row(Text(shown), each.phase, ratio, each.against, Text(each.speeds, style="dim"), each.rounds)
            shown = ""
    return table


def _caption(reports: Sequence[EvalReport]) -> str:
    """How it was measured, then the kernels of each model."""
    protocol = reports[0].protocol
    measured = (
        f"95 % intervals; {protocol.windows} windows of {protocol.length}, stride {protocol.stride}, "
        f"BOS {'yes' if protocol.prefix_tokens else 'no'}; text {protocol.data_hash[:15]}"
    )
    losses = dict.fromkeys(f"loss measured in {report.loss_note}" for report in reports)
    notes = dict.fromkeys(
        note
        for report in reports
        for note in (report.comparison.kl.note, report.speed_protocol and report.speed_protocol.note)
        if note
    )
    lines = (f"{report.name}: {line}" for report in reports if (line := kernels_line(report)))
    return printable("\n".join([measured, *losses, *notes, *lines]))


def _size(section: ModelSection) -> list[Text]:
    perplexity = Text(number(section.perplexity.value, 4))
    perplexity.append(f"\n{interval(section.perplexity)}", style="dim")
    return [Text(bytes_text(section.checkpoint_bytes)), Text(number(section.bits_per_weight)), perplexity]


def _row(report: EvalReport) -> list[Text]:
    kl = Text(number(report.comparison.kl.mean))
    kl.append(f"\n{plus_minus(report.comparison.kl)}", style="dim")
    cells = [Text(printable(report.name)), *_size(report.quantized), kl]
    cells.append(Text(percent(report.comparison.top1_agreement.value)))
    failed = [each.name for each in report.budget if not each.passed]
    last = Text(verdict_text(report.comparison))
    if failed:
        last.append(f"\nover budget: {', '.join(failed)}", style="red")
    return [*cells, last]
