"""Several evaluations against one baseline as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from llmquant.data.protocols import departures
from llmquant.data.windows import Protocol
from llmquant.errors import DataError
from llmquant.eval.metrics import metrics
from llmquant.eval.metrics.base import NOTHING, Cell, Column
from llmquant.eval.metrics.speed import kernels_line
from llmquant.eval.result import EvalReport
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
        if report.against != first.against or report.protocol.data_hash != first.protocol.data_hash:
            one, other = (
                f"{each.name!r} was measured {f'against {each.against!r}' if each.against else 'alone'} on "
                f"{each.protocol.source!r}"
                for each in (report, first)
            )
            raise DataError(f"{one}, {other} (or on other windows); evaluate both on the same text and baseline")


def columns_of(reports: Sequence[EvalReport]) -> list[tuple[Column, list[Cell]]]:
    """Each column of any report, as the first that has it describes it, with the cells of all reports."""
    by_head = [{column.head: column for column in report.columns()} for report in reports]
    first = {head: column for columns in reversed(by_head) for head, column in columns.items()}
    heads = sorted(dict.fromkeys(head for columns in by_head for head in columns), key=lambda head: first[head].words)
    return [
        (first[head], [columns[head].quantized if head in columns else NOTHING for columns in by_head])
        for head in heads
    ]


def render_table(reports: Sequence[EvalReport]) -> Group:
    """What was lost: the baseline's row, then one per report in the order given; then how fast, and how measured.

    Names come from outside, so everything is `Text`, which knows no markup.

    Raises:
        DataError: if the reports are not comparable (see `check_comparable`).
    """
    check_comparable(reports)
    more = [table for metric in metrics() for table in metric.tables(reports)]
    return Group(_loss_table(reports), *more, Text(f"\n{_caption(reports)}", style="dim"))


def _loss_table(reports: Sequence[EvalReport]) -> Table:
    first, protocol = reports[0], reports[0].protocol
    title = f"{protocol.scored_tokens} tokens of {protocol.source}"
    title = f"against {first.against}, {title}" if first.against else title
    table = Table(title=Text(printable(title)), title_justify="left", box=None, header_style="dim", pad_edge=False)
    table.add_column("model", overflow="fold")
    columns = [(column, cells) for column, cells in columns_of(reports) if column.terminal]
    for column, _ in columns:
        head = column.head.replace("/", " / ")  # where a narrow terminal may break it
        table.add_column(head, justify="left" if column.words else "right", min_width=column.min_width)
    if first.against:
        table.add_row(Text(printable(first.against)), *(_text(column.baseline) for column, _ in columns))
    for place, report in enumerate(reports):
        name = Text(printable(report.name))
        if not report.budget_passed:
            name.append(f"\nover budget: {report.over_budget}", style="red")
        table.add_row(name, *(_text(cells[place]) for _, cells in columns))
    return table


def protocol_line(protocol: Protocol) -> str:
    """How the text was cut into windows, and the hash of their tokens."""
    named = "" if protocol.name == "tokens" else f"protocol {protocol.name}; "
    windows = (
        f"{named}{protocol.windows} windows of {protocol.length}, stride {protocol.stride}, "
        f"BOS {'yes' if protocol.prefix_tokens else 'no'}; text {protocol.data_hash[:15]}"
    )
    return "; ".join([windows, *departures(protocol)])


def _text(cell: Cell) -> Text:
    text = Text(cell.text)
    for line in cell.below:
        text.append(f"\n{line}", style="dim")
    return text


def _caption(reports: Sequence[EvalReport]) -> str:
    """How it was measured, then the kernels of each model."""
    measured = f"95 % intervals; {protocol_line(reports[0].protocol)}"
    losses = dict.fromkeys(f"loss measured in {report.loss_note}" for report in reports)
    notes = dict.fromkeys(column.remark for report in reports for column in report.columns() if column.remark)
    lines = (f"{report.name}: {line}" for report in reports if (line := kernels_line(report)))
    return printable("\n".join([measured, *losses, *notes, *lines]))
