"""Tuning, one file each: the recipe word `scale_refit` means `llmquant.algorithms.tuning.scale_refit`.

Every file here but `base` is one: see `base.Tuning`.
"""

from __future__ import annotations

from llmquant.algorithms.tuning.base import Tuning
from llmquant.by_name import find_in, names_in


def names() -> list[str]:
    """Names of the methods, sorted."""
    return names_in(__name__)


def find(name: str) -> Tuning:
    """The module of a method, such as "scale_refit".

    Raises:
        RecipeError: if there is none of this name; the message suggests the nearest.
    """
    return find_in(__name__, name, "tuning method")
