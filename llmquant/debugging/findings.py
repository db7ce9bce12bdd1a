"""What was found, in words: how bad, where, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Severity = Literal["damaged", "fault", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("damaged", "fault", "warning", "note")
"""Worst first: no reader computes sense with it; not what the baseline asks for; may cost accuracy; to be known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was found.

    Attributes:
        kind: a word for programs, such as "scale-nan".
        where: the modules, or the tensor.
        what: in words, with numbers.
        advice: what to do.
        cost: what it costs in nats of KL, where that was measured.
    """

    severity: Severity
    kind: str
    where: tuple[str, ...]
    what: str
    advice: str
    cost: float | None = None


def worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """By severity, then by cost; what has none keeps its order behind."""
    return tuple(sorted(findings, key=lambda each: (SEVERITIES.index(each.severity), -(each.cost or 0.0))))
