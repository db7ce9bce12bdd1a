"""Modules that are found by the name of their file: a new file in a package is a new method, and no list names it.

A package that works so has a file `base`, which says what its modules are, and maybe a folder `shared` with what they
have in common; every other file in it is one of them.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from typing import Any

from llmquant.errors import RecipeError
from llmquant.words import did_you_mean, listed

_NOT_ONE = ("base", "shared")


def names_in(package: str, others: tuple[str, ...] = ()) -> list[str]:
    """Names of the modules of a package, sorted.

    Args:
        package: its full name, such as "llmquant.algorithms.rounding".
        others: files that are none of them, besides `base` and `shared`.
    """
    path = importlib.import_module(package).__path__
    return sorted(module.name for module in pkgutil.iter_modules(path) if _is_one(module.name, others))


def find_in(package: str, name: str, what: str, others: tuple[str, ...] = ()) -> Any:
    """One module of a package.

    Args:
        package: as in `names_in`.
        name: of the module, such as "gptq".
        what: it is, for the message: "rounding method".
        others: as in `names_in`.

    Raises:
        RecipeError: if there is none of this name; the message suggests the nearest.
    """
    # Looking before importing keeps a module with a missing dependency from being called unknown.
    if not _is_one(name, others) or importlib.util.find_spec(f"{package}.{name}") is None:
        known = names_in(package, others)
        raise RecipeError(f"unknown {what} {name!r}{did_you_mean(name, known)} There are: {listed(known)}")
    return importlib.import_module(f"{package}.{name}")


def _is_one(name: str, others: tuple[str, ...]) -> bool:
    return name.isidentifier() and not name.startswith("_") and name not in (*_NOT_ONE, *others)
