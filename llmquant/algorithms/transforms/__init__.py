"""Transforms, one file each: the recipe word `smoothquant` means `llmquant.algorithms.transforms.smoothquant`.

Every file here but `base` is one: see `base.Transform`.
"""

from __future__ import annotations

from llmquant.algorithms.transforms.base import Transform
from llmquant.by_name import find_in, names_in


def names() -> list[str]:
    """Names of the transforms, sorted."""
    return names_in(__name__)


def find(name: str) -> Transform:
    """The module of a transform, such as "smoothquant".

    Raises:
        RecipeError: if there is none of this name; the message suggests the nearest.
    """
    return find_in(__name__, name, "transform")
