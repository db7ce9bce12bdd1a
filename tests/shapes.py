"""Checks tensors against the shapes that annotations give them: `conftest` turns it on where these are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from inspect import isclass
from typing import Any, get_args

import beartype
import jaxtyping

ROOMS = ("numerics", "statistics", "algorithms", "formats")


def install() -> None:
    """Before llmquant is imported: check every call in the rooms, and the fields of their dataclasses."""
    jaxtyping.install_import_hook([f"llmquant.{room}" for room in ROOMS], f"{__name__}.checked")


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, checked by beartype if an annotation says a shape: checking all would double the suite's time."""
    hints = [hint for annotation in function.__annotations__.values() for hint in _parts(annotation)]
    shaped = any(isclass(hint) and issubclass(hint, jaxtyping.AbstractArray) for hint in hints)
    return beartype.beartype(function) if shaped else function


def _parts(hint: Any) -> Iterator[Any]:
    yield hint
    for part in get_args(hint):
        yield from _parts(part)
