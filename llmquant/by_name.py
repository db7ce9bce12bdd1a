"""Modules that are found by the name of their file: a new file in a package is a new method, and no list names it.

A package that works so has a file `base`, which says what its modules are, and maybe a folder `shared` with what they
have in common; every other file in it is one of them. So is every module that an installed distribution names as an
entry point of the group that is called as the package, and every file that is named by its path.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar, cast

from llmquant.errors import RecipeError
from llmquant.words import did_you_mean, listed

Found = TypeVar("Found")


@dataclass(frozen=True)
class ByName(Generic[Found]):
    """The modules of a package, each of which is a `Found`.

    Attributes:
        package: its full name, such as "llmquant.algorithms.rounding"; also the group of entry points.
        what: one of them is, for messages: "rounding method".
        needs: what each must define; of one from outside it is checked.
        others: files that are none of them, besides `base` and `shared`.
    """

    package: str
    what: str
    needs: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    def names(self) -> list[str]:
        """The names of all, sorted."""
        path = importlib.import_module(self.package).__path__
        own = {module.name for module in pkgutil.iter_modules(path) if self._is_one(module.name)}
        return sorted(own | _outside(self.package).keys())

    def find(self, name: str) -> Found:
        """The module of this name, such as "gptq", or of this path, such as "methods/mine.py".

        Raises:
            RecipeError: if there is none, with the nearest name; or if one from outside cannot be run or lacks
                something.
        """
        if is_file(name):
            return self._complete(_module_of(Path(name)), name)
        full = f"{self.package}.{name}"
        # Looking before importing keeps a module with a missing dependency from being called unknown.
        if self._is_one(name) and importlib.util.find_spec(full) is not None:
            return cast(Found, importlib.import_module(full))
        if name in (outside := _outside(self.package)):
            where = f"{name} of the entry point {outside[name].value!r}"
            return self._complete(_run(lambda: outside[name].load(), where), where)
        known = self.names()
        hint = did_you_mean(name, known) or "."
        raise RecipeError(f"unknown {self.what} {name!r}{hint} There are: {listed(known)}")

    def _is_one(self, name: str) -> bool:
        return name.isidentifier() and not name.startswith("_") and name not in ("base", "shared", *self.others)

    def _complete(self, module: object, where: str) -> Found:
        if missing := [name for name in self.needs if not hasattr(module, name)]:
            raise RecipeError(
                f"{where} is no {self.what}: it has no {listed(missing)}; each defines {listed(self.needs)}"
            )
        return cast(Found, module)


def is_file(name: str) -> bool:
    """Whether the name of a method is the path of a file."""
    return name.endswith(".py")


@cache
def _outside(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}


def _module_of(path: Path) -> ModuleType:
    """The module of a file; it is run once in a process."""
    name = f"llmquant_file:{path.resolve()}"
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise RecipeError(f"no file {path}")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    loader = spec.loader
    assert loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: a dataclass looks for its own module
    try:
        _run(lambda: loader.exec_module(module), str(path))
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _run(work: Callable[[], Any], where: str) -> Any:
    try:
        return work()
    except Exception as error:  # whatever somebody else's code raises
        raise RecipeError(f"{where} cannot be run ({type(error).__name__}: {error})") from error
