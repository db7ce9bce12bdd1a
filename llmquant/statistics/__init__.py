"""What calibration measures on the layers of a block, one file each, found by its name.

Every file here but `base` and `collect` is one: see `base.StatisticModule`.
"""

from __future__ import annotations

from llmquant.by_name import find_in, names_in
from llmquant.statistics.base import StatisticModule

_OTHERS = ("collect",)


def names() -> list[str]:
    """Names of the statistics, sorted."""
    return names_in(__name__, _OTHERS)


def find(name: str) -> StatisticModule:
    """The module of a statistic, such as "hessian".

    Raises:
        RecipeError: if there is none of this name; the message suggests the nearest.
    """
    return find_in(__name__, name, "statistic", _OTHERS)
