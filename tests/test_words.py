"""Numbers and foreign text in messages."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from llmquant.words import bytes_text, duration, escaped, number, one_a_line, printable


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (2_830_000, "2.83 MB"), (999_600, "1 MB"), (139e9, "139 GB")],
)
def test_bytes_never_round_to_nothing(count: float, text: str) -> None:
    assert bytes_text(int(count)) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (130, "2 min 10 s"),
        (3599.7, "1 h 00 min"),
        (11100, "3 h 05 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    "text",
    ["[/x]", "[bold red]name", "a\\", "a\\[b]", "[link=file:///x]y[/link]", "plain [0]", "[", ":warning:"],
)
def test_markup_from_outside_is_shown_as_it_is(text: str) -> None:
    file = io.StringIO()
    Console(file=file, width=200, emoji=False).print(f"[bold]{escaped(text)}[/]!", highlight=False)
    assert file.getvalue() == f"{text}!\n"


@pytest.mark.parametrize(
    "text", ["\x1b[2J", "\x1b]0;title\x07", "a\rb", "a\bb", "\x9b2J", "\u202etxt.exe", "\ud83d", "\t", "\x00", "\x7f"]
)
def test_a_terminal_obeys_nothing_from_outside(text: str) -> None:
    made = printable(f"<{text}>")
    assert made.isprintable()
    assert made.isascii()
    assert made.startswith("<\\") or made[1].isalpha()
    assert printable("two\nlines – ä 漢") == "two\nlines – ä 漢"


def test_of_many_problems_the_first_are_shown_and_the_rest_counted() -> None:
    assert one_a_line(["a", "b"]) == "\n  a\n  b"
    assert one_a_line(["a", "b", "c"], 1) == "\n  a\n  and 2 more"


def test_numbers_that_are_none() -> None:
    assert [number(float(word)) for word in ("nan", "inf", "-inf")] == ["nan", "inf", "-inf"]
