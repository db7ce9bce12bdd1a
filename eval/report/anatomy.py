"""Where the bytes are: one stacked bar per checkpoint, and the same numbers as a table."""

from __future__ import annotations

from collections.abc import Sequence

from llmquant.eval.lines import bytes_text, percent
from llmquant.eval.report.markup import Markup, element, join, svg
from llmquant.eval.result import AnatomyPart, EvalReport

_WIDTH, _ROW, _LEFT, _RIGHT = 1040, 38, 160, 84
_COLOURS = 7


def anatomy_chart(reports: Sequence[EvalReport]) -> Markup | None:
    """Bars by module kind, the baseline first; None where no report has an anatomy."""
    rows = [(report.name, report.anatomy) for report in reports if report.anatomy]
    if not rows:
        return None
    if reports[0].anatomy_baseline:
        rows.insert(0, (reports[0].baseline.name, reports[0].anatomy_baseline))
    kinds = list(dict.fromkeys(part.kind for _, parts in rows for part in parts))
    largest = max(sum(part.bytes for part in parts) for _, parts in rows)
    bars = [_bar(place, name, parts, kinds, largest) for place, (name, parts) in enumerate(rows)]
    legend = element("ul", *(_legend_entry(place, kind) for place, kind in enumerate(kinds)), class_="legend")
    title = "Bytes by kind of module: " + "; ".join(
        f"{name} {bytes_text(sum(part.bytes for part in parts))}" for name, parts in rows
    )
    return join(legend, svg(_WIDTH, _ROW * len(rows), title, *bars), _table(rows))


def _legend_entry(place: int, kind: str) -> Markup:
    return element("li", element("span", class_=f"swatch k{place % _COLOURS}"), kind)


def _bar(place: int, name: str, parts: Sequence[AnatomyPart], kinds: Sequence[str], largest: int) -> Markup:
    total, y, x = sum(part.bytes for part in parts), _ROW * place + 6.0, float(_LEFT)
    short = name if len(name) <= 20 else name[:19] + "…"
    pieces = [element("text", short, class_="label", x=float(_LEFT - 12), y=y + 17, text_anchor="end")]
    for part in sorted(parts, key=lambda part: kinds.index(part.kind)):
        width = (_WIDTH - _LEFT - _RIGHT) * part.bytes / largest
        tip = f"{part.kind}, {part.scheme}: {bytes_text(part.bytes)}, {percent(part.bytes / total)} of {name}"
        colour = f"k{kinds.index(part.kind) % _COLOURS}"
        visible = max(width - 2, 0.5)  # a gap of the page's colour parts the pieces
        pieces.append(element("rect", element("title", tip), class_=colour, x=x, y=y, width=visible, height=26.0, rx=2))
        x += width
    pieces.append(element("text", bytes_text(total), class_="tick", x=x + 6, y=y + 17))
    return element("g", *pieces)


def _table(rows: Sequence[tuple[str, Sequence[AnatomyPart]]]) -> Markup:
    head = element("tr", *(element("th", text, scope="col") for text in ("model", "kind", "scheme", "bytes", "share")))
    lines = []
    for name, parts in rows:
        total = sum(part.bytes for part in parts)
        for part in parts:
            cells = (name, part.kind, part.scheme, bytes_text(part.bytes), percent(part.bytes / total))
            lines.append(element("tr", *(element("td", cell) for cell in cells)))
    table = element("table", element("thead", head), element("tbody", *lines), class_="plain")
    return element("details", element("summary", "the same as a table"), table)
