"""Tables as every verb prints them: no box, dim heads."""

from __future__ import annotations

import re
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from llmquant.words import printable


class Name:
    """A module's name, which a narrow table breaks behind its dots and commas, not inside its words."""

    def __init__(self, text: str) -> None:
        self._words = re.split(r"(?<=[^.]\.)(?=[^.])|(?<=,)", printable(text))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Between the longest word and the whole name."""
        return Measurement(max(map(len, self._words), default=0), sum(map(len, self._words)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """As many words on a line as fit."""
        lines = [""]
        for word in self._words:
            if lines[-1] and len(lines[-1] + word) > options.max_width:
                lines.append("")
            lines[-1] += word
        yield from (Text(line, overflow="fold") for line in lines)


def plain_table(*heads: str, fold: str | None = None, **more: Any) -> Table:
    """A table with these columns; ">" in front of a head sets it to the right.

    `fold` is the column that is broken where the terminal is narrow, the others are in one piece; `more` is of `Table`.
    """
    table = Table(box=None, header_style="dim", pad_edge=False, **more)
    for head in heads:
        side = "right" if head.startswith(">") else "left"
        table.add_column(head.removeprefix(">"), justify=side, overflow="fold", no_wrap=head != fold)
    return table
