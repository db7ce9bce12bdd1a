"""Bytes by kind add up to those of the plan."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from llmquant.errors import CheckpointError
from llmquant.eval import Subject
from llmquant.eval.metrics.anatomy import Part, measure, parts_of
from llmquant.eval.metrics.base import NoOptions
from llmquant.models.skeleton import build_skeleton, take_inventory
from llmquant.recipe.load import load_recipe
from llmquant.recipe.plan import make_plan


def test_anatomy_of_a_plan(baseline) -> None:
    recipe = load_recipe({"version": 1, "name": "t", "rules": [{"match": "mlp.gate_up", "scheme": "int4-g32"}]})
    plan = make_plan(recipe, take_inventory(build_skeleton(baseline.config)))
    after, before = parts_of(plan.to_dict()), parts_of(plan.to_dict(), before=True)
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
    assert Part("mlp", "keep", 2 * 3 * 32 * 48 * plan.inventory.dtype.itemsize) in before


@pytest.mark.parametrize("plan", [{}, {"rows": [{"kind": "linear"}]}, {"rows": None}, []])
def test_a_damaged_plan_is_an_error(baseline, plan: object) -> None:
    subject = Subject(name="q", baseline_name="b", made={"plan": plan})
    pair: Any = SimpleNamespace(subject=subject, baseline=baseline)
    with pytest.raises(CheckpointError, match=r"llmquant\.json is damaged"):
        measure(pair, NoOptions())


@pytest.mark.parametrize("packed", [False, True])
def test_nothing_is_said_of_a_baseline_that_another_tool_packed(packed: bool) -> None:
    plan = {"rows": [{"kind": "linear", "scheme": "int8", "bytes_before": 16, "bytes_after": 8}]}
    config = SimpleNamespace(quantization_config={"quant_method": "other"} if packed else None)
    subject = Subject(name="q", baseline_name="b", made={"plan": plan})
    pair: Any = SimpleNamespace(subject=subject, baseline=SimpleNamespace(config=config))
    found = measure(pair, NoOptions())
    assert found is not None
    assert found.baseline == (() if packed else (Part("linear", "keep", 16),))
    assert found.quantized == (Part("linear", "int8", 8),)
