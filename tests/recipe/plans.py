"""Plans and refusals in one call, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from llmquant.errors import PlanError
from llmquant.models.inventory import Inventory, ModuleInfo
from llmquant.recipe.load import load_recipe
from llmquant.recipe.plan import MatrixRow, Plan, PlanRow, make_plan
from llmquant.recipe.schema import Rounding
from llmquant.spec import Scheme

Make = Callable[..., Inventory]


def plan_of(inventory: Inventory, *rules: tuple[Any, ...], **more: Any) -> Plan:
    """A plan of rules given as (match, scheme) or (match, scheme, if_indivisible)."""
    keys = ("match", "scheme", "if_indivisible")
    listed = [dict(zip(keys, rule, strict=False)) for rule in rules]
    return make_plan(load_recipe({"version": 1, "rules": listed, **more}), inventory)


def refusal(inventory: Inventory, *rules: tuple[Any, ...], **more: Any) -> list[str]:
    """The problems of a plan that must be refused."""
    with pytest.raises(PlanError) as caught:
        plan_of(inventory, *rules, **more)
    first, *problems = str(caught.value).split("\n  - ")
    assert first.endswith(", 1 problem:" if len(problems) == 1 else f", {len(problems)} problems:")
    return problems


def schemes(plan: Plan) -> dict[str, str]:
    return {row.module.name: row.scheme.name for row in plan.rows}


def with_obstacle(inventory: Inventory, part: str, obstacle: str = "model code reads its weight") -> Inventory:
    return replace(
        inventory,
        modules=tuple(replace(m, obstacle=obstacle) if part in m.name else m for m in inventory.modules),
    )


def plan_row(module: ModuleInfo, scheme: Scheme) -> PlanRow:
    """A row of a plan that nobody made, without sizes."""
    if scheme.is_keep:
        return PlanRow(module, scheme, "rule", None, 0, 0)
    return MatrixRow(
        module,
        scheme,
        "rule",
        Rounding(),
        0,
        0,
        matrix=module.matrices[0],
        payload=0,
        scale_dtype=torch.bfloat16,
        dense_dtype=torch.bfloat16,
    )
