"""Limits that a result must keep, from a recipe's budget or the command line."""

from __future__ import annotations

from collections.abc import Mapping

from llmquant.errors import RecipeError
from llmquant.eval.result import BudgetVerdict, ComparisonSection

NAMES = ("kl", "perplexity_ratio", "bits_per_weight")


def check_budget(
    limits: Mapping[str, float | None], comparison: ComparisonSection, bits_per_weight: float | None
) -> tuple[BudgetVerdict, ...]:
    """Hold measurements against limits; a value at its limit passes.

    Args:
        limits: by name (`NAMES`); None means no limit.
        comparison: gives mean KL and perplexity ratio.
        bits_per_weight: of the quantized checkpoint, over all weights.

    Raises:
        RecipeError: for an unknown name, or a limit on bits per weight where the size is unknown.
    """
    verdicts = []
    for name, limit in limits.items():
        if name not in NAMES:
            raise RecipeError(f"unknown budget {name!r}; the budgets are {', '.join(NAMES)}")
        if limit is None:
            continue
        if name == "bits_per_weight":
            if bits_per_weight is None:
                raise RecipeError("the budget bits_per_weight needs the checkpoint's folder, and none was given")
            verdicts.append(BudgetVerdict(name, limit, bits_per_weight, bits_per_weight <= limit, certain=True))
            continue
        ratio, kl = comparison.perplexity_ratio, comparison.kl
        value, low, high = (kl.mean, kl.low, kl.high) if name == "kl" else (ratio.value, ratio.low, ratio.high)
        certain = low is not None and high is not None and not low <= limit <= high
        verdicts.append(BudgetVerdict(name, limit, value, value <= limit, certain))
    return tuple(verdicts)
