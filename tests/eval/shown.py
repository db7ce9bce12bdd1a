"""What a reader sees of the page and of the terminal's table."""

from __future__ import annotations

from html.parser import HTMLParser

from rich.console import Console

from llmquant.eval.result import EvalReport
from llmquant.eval.table import render_table

VOID = {"meta"}


class Checker(HTMLParser):
    """Tags must nest; collects text and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def parsed(page: str) -> Checker:
    checker = Checker()
    checker.feed(page.replace("<wbr>", ""))  # which is no more than where a line may break
    assert not checker.stack
    return checker


def printed(reports: list[EvalReport], width: int = 200) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(render_table(reports))
    return capture.get()
