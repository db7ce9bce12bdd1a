"""Measurements against the limits that a result must keep."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter

from llmquant.errors import RecipeError
from llmquant.eval.metrics.base import Section
from llmquant.eval.result import BudgetVerdict
from llmquant.eval.statistics import Estimate
from llmquant.limits import limits


def hold(wanted: Mapping[str, float], sections: Mapping[str, Section]) -> tuple[BudgetVerdict, ...]:
    """Hold measurements against limits; a value at its limit passes.

    Args:
        wanted: limits by name, all known and positive (`llmquant.limits.check_limits`).
        sections: by metric; where one holds a plain number in place of an estimate, that number is exact.

    Raises:
        RecipeError: if a metric had nothing to measure.
    """
    return tuple(_verdict(name, limit, sections) for name, limit in wanted.items())


def _verdict(name: str, limit: float, sections: Mapping[str, Section]) -> BudgetVerdict:
    where = limits()[name]
    if where.metric not in sections:
        raise RecipeError(f"the budget {name} cannot be held: there was nothing that {where.metric!r} could measure")
    found = attrgetter(where.path)(sections[where.metric])
    if not isinstance(found, Estimate):
        return BudgetVerdict(name, limit, found, found <= limit, certain=True)
    certain = found.low is not None and found.high is not None and not found.low <= limit <= found.high
    return BudgetVerdict(name, limit, found.value, found.value <= limit, certain)
