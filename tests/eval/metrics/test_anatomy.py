"""Bytes by kind add up to those of the plan."""

from __future__ import annotations

from llmquant.eval.metrics.anatomy import anatomy_of, baseline_anatomy_of
from llmquant.eval.result import AnatomyPart
from llmquant.models.skeleton import build_skeleton, take_inventory
from llmquant.recipe.load import load_recipe
from llmquant.recipe.plan import make_plan


def test_anatomy_of_a_plan(baseline) -> None:
    recipe = load_recipe({"version": 1, "name": "t", "rules": [{"match": "mlp.gate_up", "scheme": "int4-g32"}]})
    plan = make_plan(recipe, take_inventory(build_skeleton(baseline.config)))
    after, before = anatomy_of(plan), baseline_anatomy_of(plan)
    assert sum(part.bytes for part in after) == plan.bytes_after
    assert sum(part.bytes for part in before) == plan.bytes_before
    assert {(part.kind, part.scheme) for part in after} == {
        ("embedding", "keep"),
        ("attention", "keep"),
        ("mlp", "keep"),
        ("mlp", "int4-g32"),
        ("norm", "keep"),
        ("lm_head", "keep"),
    }
    assert AnatomyPart("mlp", "keep", 2 * 3 * 32 * 48 * plan.inventory.dtype.itemsize) in before
