"""Where the bytes are, by kind of module and scheme: one stacked bar per checkpoint, and the same as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmquant.errors import CheckpointError
from llmquant.eval.charts import Bar, bars, legend
from llmquant.eval.markup import Markup, element, join, table
from llmquant.eval.metrics import base
from llmquant.eval.metrics.base import Panel
from llmquant.words import bytes_text, percent

if TYPE_CHECKING:
    from llmquant.eval.pair import Pair
    from llmquant.eval.result import EvalReport

PLACE = 60
ALONE = True
_SETS = ("attention", "mlp", "experts", "router", "embedding", "lm_head")


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
    chart = bars([_bar(name, parts, kinds) for name, parts in rows], "Bytes by kind of module")
    content = join(legend([("■", kind) for kind in kinds]), element("figure", chart.svg()), _table(rows))
    return [Panel("Where the bytes are", content)]


def _bar(name: str, parts: Sequence[Part], kinds: Sequence[str]) -> Bar:
    pieces = sorted((kinds.index(part.kind), float(part.bytes)) for part in parts)
    return Bar(name, pieces, bytes_text(sum(part.bytes for part in parts)))


def _table(rows: Sequence[tuple[str, Sequence[Part]]]) -> Markup:
    lines = []
    for name, parts in rows:
        total = sum(part.bytes for part in parts)
        lines += [(name, each.kind, each.scheme, bytes_text(each.bytes), percent(each.bytes / total)) for each in parts]
    content = table(("model", "kind", "scheme", "bytes", "share"), lines)
    return element("details", element("summary", "the same as a table"), content)
