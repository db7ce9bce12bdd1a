"""Names in tables break behind dots where the terminal is narrow."""

from __future__ import annotations

import pytest
from rich.console import Console

from llmquant.cli.tables import Name, plain_table

NAME = "model.layers.{0..3}.mlp.down_proj"


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (80, [NAME]),
        (40, ["model.layers.{0..3}.mlp.", "down_proj"]),
        (30, ["model.layers.", "{0..3}.mlp.", "down_proj"]),
        (16, ["mode", "l.", "laye", "rs.", "{0..", "3}.", "mlp.", "down", "_pro", "j"]),
    ],
)
def test_a_name_breaks_behind_dots(width: int, lines: list[str]) -> None:
    table = plain_table("module", ">size", fold="module")
    table.add_row(Name(NAME), "1234567890")
    console = Console(width=width)
    with console.capture() as captured:
        console.print(table)
    shown = [line.replace("1234567890", "").strip() for line in captured.get().splitlines()]
    assert shown[-len(lines) :] == lines


def test_a_name_is_plain_text() -> None:
    console = Console(width=40)
    with console.capture() as captured:
        console.print(Name("a.[red]b[/]\x1b[2J"), Name(""))
    assert captured.get().splitlines()[0] == "a.[red]b[/]\\x1b[2J"
