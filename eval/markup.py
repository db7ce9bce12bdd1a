"""Small builders of escaped HTML and SVG. Every text from outside passes through `element` or `escape`."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence


class Markup(str):
    """Text that is HTML already; everything else is escaped when it is put into an element."""

    __slots__ = ()


def escape(text: str) -> Markup:
    """Plain text as HTML; Markup stays as it is."""
    return text if isinstance(text, Markup) else Markup(html.escape(text, quote=True))


def element(tag: str, *children: str, **attributes: str | float | None) -> Markup:
    """An element; `class_` stands for class, underscores in other names become dashes, None leaves an attribute out."""
    parts = [tag]
    for key, value in attributes.items():
        if value is not None:
            name = "class" if key == "class_" else key.replace("_", "-")
            parts.append(f'{name}="{escape(f"{value:.2f}" if isinstance(value, float) else str(value))}"')
    return Markup(f"<{' '.join(parts)}>{''.join(escape(child) for child in children)}</{tag}>")


def breakable(name: str) -> Markup:
    """A name that may go on in a new line behind its dots, dashes and the like, not inside its words."""
    return Markup(re.sub(r"([._/-])", r"\1<wbr>", escape(name)))


def join(*parts: str) -> Markup:
    """Several pieces one after the other."""
    return Markup("".join(escape(part) for part in parts))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], class_: str = "", *, named: bool = False) -> Markup:
    """A table with a line of column titles, which each cell also bears for where a narrow page stacks them.

    `named`: the first cell of a row is its title.
    """
    titles = element("tr", *(element("th", text, scope="col") for text in head))
    lines = []
    for row in rows:
        cells = [element("td", cell, data_label=title) for title, cell in zip(head, row, strict=True)]
        lines.append(element("tr", *([element("th", breakable(row[0]), scope="row"), *cells[1:]] if named else cells)))
    return element("table", element("thead", titles), element("tbody", *lines), class_=f"plain {class_}".strip())


def folded(parts: Sequence[tuple[str, Markup | None]]) -> Markup | None:
    """A foldable part per name, the first one open; those without content are left out, None if there is nothing."""
    shown = [(name, content) for name, content in parts if content]
    folds = (
        element("details", element("summary", name), content, open=None if place else "open")
        for place, (name, content) in enumerate(shown)
    )
    return join(*folds) if shown else None
