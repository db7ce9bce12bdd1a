"""A plan as bytes by kind of module and scheme, for the page's stacked bars."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from llmquant.eval.result import AnatomyPart
from llmquant.models.inventory import ModuleInfo
from llmquant.recipe.plan import Plan, PlanRow

_SETS = ("attention", "mlp", "experts", "router", "embedding", "lm_head")


def anatomy_of(plan: Plan) -> tuple[AnatomyPart, ...]:
    """Bytes after quantizing, in the plan's order; kinds without bytes (tied modules) are left out."""
    return _collect(plan.rows, lambda row: (row.scheme.name, row.bytes_after))


def baseline_anatomy_of(plan: Plan) -> tuple[AnatomyPart, ...]:
    """Bytes before quantizing."""
    return _collect(plan.rows, lambda row: ("keep", row.bytes_before))


def _collect(rows: Iterable[PlanRow], facts: Callable[[PlanRow], tuple[str, int]]) -> tuple[AnatomyPart, ...]:
    totals: dict[tuple[str, str], int] = {}
    for row in rows:
        scheme, count = facts(row)
        key = (_kind(row.module), scheme)
        totals[key] = totals.get(key, 0) + count
    return tuple(AnatomyPart(kind, scheme, count) for (kind, scheme), count in totals.items() if count)


def _kind(module: ModuleInfo) -> str:
    return next((name for name in _SETS if name in module.sets), module.kind)
