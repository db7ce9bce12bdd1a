"""Rounding methods, one file each: the recipe word `gptq` means `llmquant.algorithms.rounding.gptq`.

Every file here but `base` is one: see `base.Algorithm`. What they have in common is in the folder `shared`.
"""

from __future__ import annotations

from llmquant.algorithms.rounding.base import Algorithm
from llmquant.by_name import find_in, names_in


def names() -> list[str]:
    """Names of the methods, sorted."""
    return names_in(__name__)


def find(name: str) -> Algorithm:
    """The module of a method, such as "gptq".

    Raises:
        RecipeError: if there is none of this name; the message suggests the nearest.
    """
    return find_in(__name__, name, "rounding method")
