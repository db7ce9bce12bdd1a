"""What an evaluation measures, one file each, found by its name. Every file here but `base` is one: see `base`."""

from __future__ import annotations

from functools import cache
from types import ModuleType

from llmquant.by_name import ByName
from llmquant.eval.metrics.base import Metric

_ALL: ByName[ModuleType] = ByName(__name__, "metric", needs=("Section", "measure"))


def find(name: str) -> Metric:
    """The metric of a name, such as "divergence".

    Raises:
        RecipeError: if there is none of this name; the message suggests the nearest.
    """
    return Metric.of(name, _ALL.find(name))


@cache
def metrics() -> tuple[Metric, ...]:
    """All of them, in the order in which they are measured and shown."""
    return tuple(sorted(map(find, _ALL.names()), key=lambda each: (each.place, each.name)))
