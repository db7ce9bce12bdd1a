"""The names of budgets, which metrics declare and recipes use.

Each file of `llmquant/eval/metrics` may declare some: `LIMITS = {"kl": ("KL", "kl.estimate")}`, a literal. It is read
here without importing the file: recipes lie below evaluation, and a command line is checked before torch is there.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import NamedTuple

from llmquant.errors import RecipeError
from llmquant.words import shown

_LARGEST = 1e100  # what a report can hold


class Limit(NamedTuple):
    """What a budget bounds.

    Attributes:
        metric: name of the metric that measures it.
        label: its short name on the page.
        path: where the measurement is in the metric's section, such as "kl.estimate".
    """

    metric: str
    label: str
    path: str


@cache
def limits() -> Mapping[str, Limit]:
    """All budgets by name."""
    found = {}
    folder = files("llmquant").joinpath("eval/metrics")
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if not file.name.endswith(".py"):
            continue
        for line in ast.parse(file.read_text(encoding="utf-8")).body:
            match line:
                case (
                    ast.Assign(targets=[ast.Name("LIMITS")], value=ast.expr() as literal)
                    | ast.AnnAssign(target=ast.Name("LIMITS"), value=ast.expr() as literal)
                ):
                    declared = ast.literal_eval(literal)
                    found |= {name: Limit(file.name.removesuffix(".py"), *where) for name, where in declared.items()}
    return MappingProxyType(found)


def check_limits(wanted: Mapping[str, float | None]) -> None:
    """Refuse budgets that nothing measures; None means no limit.

    Raises:
        RecipeError: for an unknown name, or a limit that is no positive number.
    """
    for name, limit in wanted.items():
        if name not in limits():
            raise RecipeError(f"unknown budget {name!r}; the budgets are {', '.join(limits())}")
        number = isinstance(limit, (int, float)) and not isinstance(limit, bool)
        if limit is not None and not (number and 0 < limit < _LARGEST):
            raise RecipeError(f"the budget {name} is {shown(limit)}; give a positive number")
