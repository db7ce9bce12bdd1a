"""Modules that are found by the name of their file: a new file in a package is a new method, and no list names it.

A package that works so has a file `base`, which says what its modules are, and maybe a folder `shared` with what they
have in common; every other file in it is one of them.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from llmquant.errors import RecipeError
from llmquant.words import did_you_mean, listed

Found = TypeVar("Found")


@dataclass(frozen=True)
class ByName(Generic[Found]):
    """The modules of a package, each of which is a `Found`.

    Attributes:
        package: its full name, such as "llmquant.algorithms.rounding".
        what: one of them is, for messages: "rounding method".
        others: files that are none of them, besides `base` and `shared`.
    """

    package: str
    what: str
    others: tuple[str, ...] = ()

    def names(self) -> list[str]:
        """The names of all, sorted."""
        path = importlib.import_module(self.package).__path__
        return sorted(module.name for module in pkgutil.iter_modules(path) if self._is_one(module.name))

    def find(self, name: str) -> Found:
        """The module of this name, such as "gptq".

        Raises:
            RecipeError: if there is none; the message suggests the nearest.
        """
        full = f"{self.package}.{name}"
        # Looking before importing keeps a module with a missing dependency from being called unknown.
        if not self._is_one(name) or importlib.util.find_spec(full) is None:
            known = self.names()
            hint = did_you_mean(name, known) or "."
            raise RecipeError(f"unknown {self.what} {name!r}{hint} There are: {listed(known)}")
        return cast(Found, importlib.import_module(full))

    def _is_one(self, name: str) -> bool:
        return name.isidentifier() and not name.startswith("_") and name not in ("base", "shared", *self.others)
