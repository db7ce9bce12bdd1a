"""Where the bytes are, by kind of module and scheme: one stacked bar per checkpoint, and the same as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmquant.errors import CheckpointError
from llmquant.eval.markup import Markup, element, join, svg, table
from llmquant.eval.metrics import base
from llmquant.eval.metrics.base import Panel
from llmquant.words import bytes_text, percent

if TYPE_CHECKING:
    from llmquant.eval.pair import Pair
    from llmquant.eval.result import EvalReport

PLACE = 60
ALONE = True
_SETS = ("attention", "mlp", "experts", "router", "embedding", "lm_head")
_WIDTH, _ROW, _LEFT, _RIGHT = 1040, 38, 160, 84
_COLOURS = 7


@dataclass(frozen=True)
class Part:
    """Bytes of one kind of module stored in one scheme."""

    kind: str
    scheme: str
    bytes: int


@dataclass(frozen=True)
class Section(base.Section):
    """Parts of both checkpoints, in the plan's order; those of a baseline that another tool packed are not known."""

    baseline: tuple[Part, ...]
    quantized: tuple[Part, ...]


def measure(pair: Pair, options: base.NoOptions) -> Section | None:
    """What the plans in llmquant.json say; None for another tool's checkpoint."""
    made, before = pair.subject.made, pair.subject.baseline_made
    if made is None:
        return None
    alone = pair.subject.baseline_name is None
    others = alone or (before is None and getattr(pair.baseline.config, "quantization_config", None))
    try:
        after = parts_of(made["plan"])
        return Section(() if others else parts_of((before or made)["plan"], before=before is None), after)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"llmquant.json is damaged: its plan has no such rows ({error!r})") from error


def parts_of(plan: Mapping[str, Any], *, before: bool = False) -> tuple[Part, ...]:
    """Bytes of a plan (as `Plan.to_dict` gives it) after quantizing or before it; kinds without bytes are left out."""
    totals: dict[tuple[str, str], int] = {}
    for row in plan["rows"]:
        kind = next((name for name in _SETS if name in row.get("sets", ())), row["kind"])
        key = (kind, "keep" if before else row["scheme"])
        totals[key] = totals.get(key, 0) + row["bytes_before" if before else "bytes_after"]
    return tuple(Part(kind, scheme, count) for (kind, scheme), count in totals.items() if count)


def panels(reports: Sequence[EvalReport]) -> list[Panel]:
    """Bars by module kind, the baseline first."""
    rows = [(name, section.quantized) for name, section in Section.of(reports) if section.quantized]
    if not rows:
        return []
    if (first := reports[0].get(Section)) and first.baseline and reports[0].baseline:
        rows.insert(0, (reports[0].baseline.name, first.baseline))
    kinds = list(dict.fromkeys(part.kind for _, parts in rows for part in parts))
    largest = max(sum(part.bytes for part in parts) for _, parts in rows)
    bars = [_bar(place, name, parts, kinds, largest) for place, (name, parts) in enumerate(rows)]
    swatches = (element("span", class_=f"swatch k{place % _COLOURS}") for place in range(len(kinds)))
    entries = (element("li", swatch, kind) for swatch, kind in zip(swatches, kinds, strict=True))
    legend = element("ul", *entries, class_="legend")
    title = "Bytes by kind of module: " + "; ".join(
        f"{name} {bytes_text(sum(part.bytes for part in parts))}" for name, parts in rows
    )
    chart = svg(_WIDTH, _ROW * len(rows), title, *bars)
    return [Panel("Where the bytes are", join(legend, chart, _table(rows)))]


def _bar(place: int, name: str, parts: Sequence[Part], kinds: Sequence[str], largest: int) -> Markup:
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


def _table(rows: Sequence[tuple[str, Sequence[Part]]]) -> Markup:
    lines = []
    for name, parts in rows:
        total = sum(part.bytes for part in parts)
        for part in parts:
            cells = (name, part.kind, part.scheme, bytes_text(part.bytes), percent(part.bytes / total))
            lines.append(element("tr", *(element("td", cell) for cell in cells)))
    content = table(("model", "kind", "scheme", "bytes", "share"), lines, "plain")
    return element("details", element("summary", "the same as a table"), content)
