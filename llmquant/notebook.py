"""What a notebook shows: results as HTML tables, and bars while something works."""

from __future__ import annotations

import html
import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import Any

from llmquant.progress import Progress
from llmquant.words import printable


def html_table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]], notes: Iterable[str] = ()) -> str:
    """A table under its title, notes below it; a head that begins with ">" is of numbers, to the right.

    Everything is escaped: names in it come from other people.
    """
    sides = ["right" if head.startswith(">") else "left" for head in heads]
    lines = [
        _cells("th", [head.removeprefix(">") for head in heads], sides),
        *(_cells("td", row, sides) for row in rows),
    ]
    below = "".join(f"<div>{_escaped(note)}</div>" for note in notes)
    return f"<div><b>{_escaped(title)}</b><table>{''.join(lines)}</table>{below}</div>"


def _cells(tag: str, texts: Sequence[str], sides: Sequence[str]) -> str:
    cells = (
        f'<{tag} style="text-align: {side}">{_escaped(text)}</{tag}>' for text, side in zip(texts, sides, strict=True)
    )
    return f"<tr>{''.join(cells)}</tr>"


def _escaped(text: str) -> str:
    return "<br>".join(html.escape(printable(line)) for line in text.split("\n"))


def default_progress() -> Progress:
    """What is told where the user gave no `progress`: bars in a notebook, elsewhere nobody."""
    return Bars() if _in_notebook() else Progress()


def _in_notebook() -> bool:
    """Whether a kernel of Jupyter runs us; nothing is imported to find out."""
    if "ipykernel" not in sys.modules or "IPython" not in sys.modules:
        return False
    shell = sys.modules["IPython"].get_ipython()
    return type(shell).__name__ == "ZMQInteractiveShell"


class Bars(Progress):
    """A bar of tqdm for each stage; a widget where ipywidgets is installed, else text."""

    def __init__(self) -> None:
        if find_spec("ipywidgets"):
            from tqdm.notebook import tqdm
        else:
            from tqdm.std import tqdm
        self._new: Any = tqdm
        self._bar: Any = None

    def stage(self, name: str, total: int, *, unit: str = "steps", work: float | None = None) -> None:  # noqa: ARG002
        if self._bar is not None:
            self._bar.close()
        self._bar = self._new(total=total, desc=name, unit=f" {unit.removesuffix('s')}", file=sys.stdout)

    def step(self, detail: str = "", *, steps: int = 1, work: float | None = None) -> None:  # noqa: ARG002
        self._bar.update(steps)
        if self._bar.n >= self._bar.total:
            self._bar.close()

    def note(self, text: str) -> None:
        self._new.write(f"note: {text}")
