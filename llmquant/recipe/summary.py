"""A plan in few lines: the same module of many blocks is one row, and all kept norms are one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmquant.recipe.naming import collective, template
from llmquant.recipe.rows import PlanRow
from llmquant.spec import Scheme


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """Modules of a plan that differ only in their block.

    Bytes are those of all of them together.

    Attributes:
        name: "model.layers.{0..79}.mlp.down_proj"; "norms" for all kept norms together.
        shape: of one module's weight; empty where shapes differ.
    """

    name: str
    count: int
    kind: str
    shape: tuple[int, ...]
    scheme: Scheme
    rule: str
    rounding: str
    bytes_before: int
    bytes_after: int
    bits_per_weight: float
    note: str


def summarize(rows: Sequence[PlanRow]) -> list[SummaryRow]:
    """Group the rows of a plan, in order of first appearance; counts and bytes add up to those of the plan."""
    groups: dict[tuple[object, ...], list[PlanRow]] = {}
    for row in rows:
        groups.setdefault(_key(row), []).append(row)
    return [_summary_row(alike) for alike in groups.values()]


def _key(row: PlanRow) -> tuple[object, ...]:
    if row.module.kind == "norm" and row.scheme.is_keep:
        return ("norms", row.rule)
    rounding = row.rounding.model_dump_json() if row.rounding else ""
    module = row.module
    return (template(module), module.kind, module.shape, module.bias, row.scheme, row.rule, rounding, row.note)


def _summary_row(rows: list[PlanRow]) -> SummaryRow:
    first = rows[0]
    norms = first.module.kind == "norm" and first.scheme.is_keep and len(rows) > 1
    shapes = {row.module.shape for row in rows}
    return SummaryRow(
        name="norms" if norms else collective([row.module for row in rows]),
        count=len(rows),
        kind=first.module.kind,
        shape=first.module.shape if len(shapes) == 1 else (),
        scheme=first.scheme,
        rule=first.rule,
        rounding=first.rounding.method if first.rounding else "",
        bytes_before=sum(row.bytes_before for row in rows),
        bytes_after=sum(row.bytes_after for row in rows),
        bits_per_weight=first.bits_per_weight,
        note=first.note,
    )
