"""Limits that a result must keep, from a recipe's budget or the command line."""

from __future__ import annotations

import math
from collections.abc import Mapping

from llmquant.errors import RecipeError
from llmquant.eval.result import BudgetVerdict, ComparisonSection

NAMES = ("kl", "perplexity_ratio", "bits_per_weight")


def check_limits(limits: Mapping[str, float | None], *, sized: bool) -> None:
    """Refuse, before any work, limits that could not be checked after it.

    Args:
        limits: by name (`NAMES`); None means no limit.
        sized: whether the bytes of the quantized checkpoint are known.

    Raises:
        RecipeError: for an unknown name, a limit that is no positive number, or one on bits per weight without sizes.
    """
    for name, limit in limits.items():
        if name not in NAMES:
            raise RecipeError(f"unknown budget {name!r}; the budgets are {', '.join(NAMES)}")
        if limit is not None and not 0 < limit < math.inf:
            raise RecipeError(f"the budget {name} is {limit}; give a positive number")
        if limit is not None and name == "bits_per_weight" and not sized:
            raise RecipeError("the budget bits_per_weight needs the checkpoint's folder, and none was given")


def check_budget(
    limits: Mapping[str, float | None], comparison: ComparisonSection, bits_per_weight: float | None
) -> tuple[BudgetVerdict, ...]:
    """Hold measurements against limits; a value at its limit passes.

    Args:
        limits: by name (`NAMES`); None means no limit.
        comparison: gives mean KL and perplexity ratio.
        bits_per_weight: of the quantized checkpoint, over all weights.

    Raises:
        RecipeError: as `check_limits`.
    """
    check_limits(limits, sized=bits_per_weight is not None)
    verdicts = []
    for name, limit in limits.items():
        if limit is None:
            continue
        if name == "bits_per_weight":
            assert bits_per_weight is not None
            verdicts.append(BudgetVerdict(name, limit, bits_per_weight, bits_per_weight <= limit, certain=True))
            continue
        ratio, kl = comparison.perplexity_ratio, comparison.kl
        value, low, high = (kl.mean, kl.low, kl.high) if name == "kl" else (ratio.value, ratio.low, ratio.high)
        certain = low is not None and high is not None and not low <= limit <= high
        verdicts.append(BudgetVerdict(name, limit, value, value <= limit, certain))
    return tuple(verdicts)
