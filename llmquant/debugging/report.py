"""What `debug` found, as plain data."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from llmquant.data.windows import Protocol
from llmquant.debugging.budget import ErrorBudget
from llmquant.debugging.edits import Edit
from llmquant.debugging.faults import WeightError
from llmquant.debugging.findings import Finding
from llmquant.debugging.layers import Comparison
from llmquant.eval.table import protocol_line
from llmquant.words import number


@dataclass(frozen=True, slots=True, kw_only=True)
class DebugReport:
    """Result of `debug`; the fields are the keys of the JSON.

    Attributes:
        findings: named faults first, the costliest first; then what costs most.
        bits: per weight that each unit of the budget takes at 16 bits, by its name.
        edit: of the recipe; None with the reason in `no_edit`.
    """

    name: str
    baseline: str
    protocol: Protocol
    loss_note: str
    findings: tuple[Finding, ...]
    weights: tuple[WeightError, ...]
    comparison: Comparison
    budget: ErrorBudget
    bits: dict[str, float]
    edit: Edit | None
    no_edit: str

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return asdict(self)

    def to_json(self) -> str:
        """All numbers; those that are none, as of a weight that is all zero, are null."""
        return json.dumps(_finite(self.to_dict()), indent=2, allow_nan=False) + "\n"

    def cost_rows(self) -> list[tuple[str, ...]]:
        """For each unit: name, scheme, KL alone, gain, share of the KL, and bits."""
        whole, rows = self.budget.kl.value, []
        for unit in self.budget.units:
            error, bits = unit.gain.standard_error, self.bits.get(unit.name)
            gain = number(unit.gain.value) + (f" ± {number(1.96 * error, 2)}" if error else "")
            share = f"{100 * unit.gain.value / whole:.0f} %" if whole else "–"
            more = "–" if bits is None else f"{bits:+.3f}"
            rows.append((unit.name, unit.scheme, number(unit.alone.value), gain, share, more))
        return rows

    def how(self) -> str:
        """On what all was measured, and in which dtype."""
        text = f"{self.protocol.scored_tokens} tokens of {self.protocol.source}"
        return f"{text}; {protocol_line(self.protocol)}; computed in {self.loss_note}"

    def sentence(self) -> str:
        """The edit in one line."""
        if self.edit is None:
            return self.no_edit
        what = "; ".join(
            f"keep {name}" if scheme == "keep" else f"{name} in {scheme}" for name, scheme in self.edit.units
        )
        before, after = number(self.edit.kl_before.value), number(self.edit.kl_after.value)
        return f"{what}: KL {before} -> {after} for {self.edit.bits:+.3f} bits per weight"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value
