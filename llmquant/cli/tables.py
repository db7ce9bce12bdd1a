"""Tables as every verb prints them: no box, dim heads."""

from __future__ import annotations

from typing import Any

from rich.table import Table


def plain_table(*heads: str, fold: str | None = None, **more: Any) -> Table:
    """A table with these columns; ">" in front of a head sets it to the right.

    `fold` is the column that is broken where the terminal is narrow, the others are in one piece; `more` is of `Table`.
    """
    table = Table(box=None, header_style="dim", pad_edge=False, **more)
    for head in heads:
        side = "right" if head.startswith(">") else "left"
        table.add_column(head.removeprefix(">"), justify=side, overflow="fold", no_wrap=head != fold)
    return table
