"""Rounding algorithms, one file each: the recipe word `gptq` means `llmquant.algorithms.rounding.gptq`.

A file here other than `base` is an algorithm: see `base.Algorithm`. What algorithms share is in the folder `shared`.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
from typing import cast

from llmquant.algorithms.rounding.base import Algorithm
from llmquant.errors import RecipeError


def names() -> list[str]:
    """Names of the algorithms, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if _is_algorithm(module.name))


def find(name: str) -> Algorithm:
    """The module of an algorithm.

    Args:
        name: such as "gptq".

    Raises:
        RecipeError: if there is none of this name; the message suggests the nearest.
    """
    # Looking before importing keeps an algorithm with a missing dependency from being called unknown.
    if not _is_algorithm(name) or importlib.util.find_spec(f"{__name__}.{name}") is None:
        known = names()
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise RecipeError(f"unknown rounding method {name!r}{hint} There are: {', '.join(known)}")
    return cast(Algorithm, importlib.import_module(f"{__name__}.{name}"))


def _is_algorithm(name: str) -> bool:
    return name.isidentifier() and not name.startswith("_") and name not in ("base", "shared")
