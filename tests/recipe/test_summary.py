"""Plans in few lines: names of many blocks, and sums that stay the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llmquant.models.inventory import Inventory, ModuleInfo
from llmquant.recipe.load import load_recipe
from llmquant.recipe.naming import collective, collective_names, template
from llmquant.recipe.plan import make_plan
from llmquant.recipe.summary import summarize


def module(name: str, block: int | None) -> ModuleInfo:
    return ModuleInfo(name, "linear", (1, 1), 1, block)


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [([3], "l.3.x"), ([0, 1, 2], "l.{0..2}.x"), ([0, 2], "l.{0,2}.x"), ([0, 2, 3, 4, 9], "l.{0,2..4,9}.x")],
)
def test_collective_names(blocks: list[int], expected: str) -> None:
    modules = [module(f"l.{block}.x", block) for block in blocks]
    assert {template(m) for m in modules} == {"l.{}.x"}
    assert collective(modules) == expected
    assert collective_names([*modules, module("lm_head", None)]) == [expected, "lm_head"]


def test_summary_has_few_rows_and_the_same_sums(llama: Callable[..., Inventory]) -> None:
    plan = make_plan(load_recipe("mixed-int4-int8"), llama(blocks=80))
    rows = summarize(plan.rows)
    assert len(rows) == 17
    assert sum(row.count for row in rows) == len(plan.rows)
    assert sum(row.bytes_after for row in rows) == plan.bytes_after
    assert sum(row.bytes_before for row in rows) == plan.bytes_before
    by_name = {row.name: row for row in rows}
    assert by_name["norms"].count == 80
    assert by_name["model.layers.{0,79}.mlp.down_proj"].scheme.is_keep
    down = by_name["model.layers.{1..78}.mlp.down_proj"]
    assert (down.scheme.name, down.count, down.rounding, down.shape) == ("int8", 78, "rtn", (256, 768))
    assert down.bits_per_weight == 8 + 16 / 768


def test_rows_that_differ_in_shape_stay_apart(llama: Callable[..., Inventory]) -> None:
    first, second = llama(blocks=1), llama(blocks=1, width=512)
    other = tuple(m for m in second.modules if m.name.endswith("up_proj"))
    merged = Inventory("X", "x", first.dtype, (*first.modules, *other), 1)
    rows = summarize(make_plan(load_recipe("int8"), merged).rows)
    assert len([row for row in rows if row.name.endswith("up_proj")]) == 2
