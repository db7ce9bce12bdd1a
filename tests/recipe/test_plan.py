"""Plans: who decides, what stays and why, and exact bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmquant import api
from llmquant.errors import PlanError
from llmquant.models.inventory import NAMED_SETS, ModuleInfo
from llmquant.recipe.load import load_recipe, preset_names
from llmquant.recipe.plan import EXPERTS_STAY, NO_RULE, make_plan
from llmquant.spec import KEEP, Scheme
from tests.recipe.plans import Make, plan_of, refusal, schemes, with_obstacle


def test_last_matching_rule_decides(llama: Make) -> None:
    plan = plan_of(llama(), ("linear", "int4-g128"), ("mlp.down", "int8"), (["first_block", "last_block"], "keep"))
    decided = schemes(plan)
    assert decided["model.layers.1.mlp.gate_proj"] == "int4-g128"
    assert decided["model.layers.1.mlp.down_proj"] == "int8"
    assert {decided[f"model.layers.{i}.mlp.down_proj"] for i in (0, 2)} == {"keep"}
    rows = {row.module.name: row for row in plan.rows}
    assert rows["model.layers.1.mlp.down_proj"].rule == "rule 2: mlp.down -> int8"
    assert rows["model.layers.0.mlp.down_proj"].rule == "rule 3: first_block, last_block -> keep"
    assert rows["model.embed_tokens"].rule == rows["lm_head"].rule == NO_RULE


def test_plan_covers_the_inventory_in_order(llama: Make) -> None:
    plan = plan_of(llama(), ("linear", "int8"))
    assert tuple(row.module for row in plan.rows) == llama().modules
    assert len(plan.quantized) == 21
    assert all("linear" in row.module.sets for row in plan.quantized)


def test_bytes_are_exact(llama: Make) -> None:
    plan = plan_of(llama(blocks=1), ("linear", "int4-g128"))
    rows = {row.module.name.rpartition(".")[2]: row for row in plan.rows}
    gate = rows["gate_proj"]
    assert gate.bytes_before == 768 * 256 * 2
    assert gate.bytes_after == 768 * 256 // 2 + 768 * 2 * 2 + 16
    assert gate.bits_per_weight == 4.125
    assert rows["embed_tokens"].bytes_after == rows["embed_tokens"].bytes_before == 100 * 256 * 2
    assert rows["embed_tokens"].bits_per_weight == 16
    assert plan.bytes_after == sum(row.bytes_after for row in plan.rows)
    assert plan.bits_per_weight == 8 * plan.bytes_after / plan.inventory.parameters
    assert plan.bytes_before == 2 * plan.inventory.parameters


def test_a_bias_stays_as_it_is(llama: Make) -> None:
    plain, biased = llama(blocks=1), llama(blocks=1)
    more = {m.name: replace(m, parameters=m.parameters + m.shape[0], bias=True) for m in plain.modules}
    biased = replace(biased, modules=tuple(more[m.name] if "linear" in m.sets else m for m in plain.modules))
    before, after = (plan_of(inventory, ("linear", "int8")).bytes_after for inventory in (plain, biased))
    assert after - before == 2 * sum(m.shape[0] for m in plain.modules if "linear" in m.sets)


def test_tied_weight_counts_once(llama: Make) -> None:
    plan = plan_of(llama(tied=True), ("linear", "int8"))
    head = plan.rows[-1]
    assert (head.bytes_before, head.bytes_after, head.bits_per_weight) == (0, 0, 0)
    assert head.note == "shares the weight of model.embed_tokens"


def test_rounding_of_the_rule_beats_that_of_the_recipe(llama: Make) -> None:
    rules = [
        {"match": "linear", "scheme": "int8"},
        {"match": "mlp.down", "scheme": "int4", "rounding": {"method": "rtn", "grid": "mse"}},
    ]
    recipe = load_recipe({"version": 1, "rules": rules})
    rows = {row.module.name: row.rounding for row in make_plan(recipe, llama()).rows}
    assert rows["model.layers.0.self_attn.q_proj"] == recipe.rounding
    assert rows["model.layers.0.mlp.down_proj"] == recipe.rules[1].rounding
    assert rows["lm_head"] is None


@pytest.mark.parametrize(
    ("width", "allowed", "expected"),
    [
        (172, "keep", "keep"),
        (172, "channel", "int4"),
        (172, "g4", "int4-g4"),
        (192, ["g64", "g32", "channel"], "int4-g64"),
        (352, ["g64", "g32", "channel"], "int4-g32"),
        (172, ["g64", "g32", "channel"], "int4"),
        (768, ["g64", "channel"], "int4-g128"),
    ],
)
def test_indivisible_groups(llama: Make, width: int, allowed: str | list[str], expected: str) -> None:
    plan = plan_of(llama(width=width), ("linear", "int4-g128", allowed))
    down = next(row for row in plan.rows if row.module.name.endswith("down_proj"))
    assert down.scheme == Scheme.parse(expected)
    assert bool(down.note) == (expected != "int4-g128")
    if down.note:
        assert down.note == f"groups of 128 do not divide {width} inputs, so {expected}"
    assert {row.scheme.name for row in plan.quantized if row.module.name.endswith("gate_proj")} == {"int4-g128"}


def test_fallback_keeps_zero_points(llama: Make) -> None:
    plan = plan_of(llama(width=172), ("linear", "int4-g128-asym", "channel"))
    assert schemes(plan)["model.layers.0.mlp.down_proj"] == "int4-asym"


@pytest.mark.parametrize("names", [["embedding"], ["model.embed_tokens"], ["embedding", "lm_head"]])
def test_a_tied_head_follows_its_embedding(llama: Make, names: list[str]) -> None:
    rules = [{"match": "linear", "scheme": "int4-g32"}, {"match": names, "scheme": "int8"}]
    plan = make_plan(load_recipe({"version": 1, "rules": rules, "portable": False}), llama(tied=True))
    rows = {row.module.name: row for row in plan.rows}
    table, head = rows["model.embed_tokens"], rows["lm_head"]
    assert (table.scheme.name, table.bytes_after) == ("int8", 100 * 256 + 100 * 2 + 16)
    assert (head.scheme.name, head.bytes_after, head.rounding) == ("int8", 0, None)
    assert head.rule == table.rule == f"rule 2: {', '.join(names)} -> int8"
    assert head.note == "shares the weight of model.embed_tokens"
    assert table in plan.quantized
    assert head not in plan.quantized


def test_a_tied_head_may_be_kept_by_name(llama: Make) -> None:
    assert schemes(plan_of(llama(tied=True), ("linear", "int8"), ("lm_head", "keep")))["lm_head"] == "keep"


def test_packed_embeddings_and_other_readers(llama: Make) -> None:
    plan_of(llama(), ("linear", "int8"), ("embedding", "int8"))
    (problem,) = refusal(llama(), ("linear", "int8"), ("embedding", "int4-g32"))
    assert problem.startswith("model.embed_tokens: packed embeddings are read back by llmquant alone, unless")
    plan_of(llama(), ("linear", "int8"), ("embedding", "int4-g32"), portable=False)
    for portable in (True, False):
        (problem,) = refusal(llama(), ("linear", "w8a8-dynamic"), ("embedding", "int8"), portable=portable)
        assert "no reader takes packed embeddings beside 8-bit activations" in problem
    problems = refusal(llama(), ("linear", "int8"), ("embedding", "w8a8-dynamic"), portable=False)
    assert "an embedding has no activations" in problems[0]
    (problem,) = refusal(llama(hidden=96), ("linear", "int8"), ("embedding", "int4-g64"), portable=False)
    assert "groups of 64 do not divide its 96 inputs" in problem


def test_untied_lm_head_can_be_quantized(llama: Make) -> None:
    plan = plan_of(llama(), ("linear", "int8"), ("lm_head", "int8"))
    assert schemes(plan)["lm_head"] == "int8"


def test_experts_stay_and_the_plan_says_so(llama: Make) -> None:
    plan = plan_of(llama(experts=True), ("linear", "int8"))
    experts = [row for row in plan.rows if row.module.kind == "experts"]
    assert {(row.scheme.name, row.rule, row.note) for row in experts} == {("keep", NO_RULE, EXPERTS_STAY)}
    size = 2 * sum(row.module.parameters for row in experts)
    (warning,) = plan.warnings
    assert warning.startswith(f"the experts stay in bfloat16: {size:,} of {plan.bytes_after:,} bytes of the result, ")
    assert f"{size / plan.bytes_after:.1%}" in warning
    assert plan.to_dict()["warnings"] == [warning]
    named = plan_of(llama(experts=True), ("linear", "int8"), ("experts", "keep"))
    assert {row.rule for row in named.rows if row.module.kind == "experts"} == {"rule 2: experts -> keep"}
    assert named.warnings == plan.warnings
    assert plan_of(llama(), ("linear", "int8")).warnings == ()


def test_what_cannot_be_packed_stays_with_the_reason(llama: Make) -> None:
    inventory = with_obstacle(llama(), "1.mlp.down_proj")
    plan = plan_of(inventory, ("linear", "int8"), ("mlp.down", "int4-g32"))
    rows = {row.module.name: row for row in plan.rows}
    row = rows["model.layers.1.mlp.down_proj"]
    assert (row.scheme, row.rounding, row.note) == (KEEP, None, "model code reads its weight")
    assert row.rule == "rule 2: mlp.down -> int4-g32"
    assert row.bytes_before == row.bytes_after
    assert rows["model.layers.0.mlp.down_proj"].scheme.name == "int4-g32"


def test_a_fused_set_stays_as_a_whole(llama: Make) -> None:
    plan = plan_of(with_obstacle(llama(), "1.self_attn.k_proj"), ("linear", "int4-g128"))
    found = {row.module.name: row for row in plan.rows if "1.self_attn" in row.module.name}
    assert {name.rpartition(".")[2]: row.scheme.name for name, row in found.items()} == {
        "q_proj": "keep", "k_proj": "keep", "v_proj": "keep", "o_proj": "int4-g128",
    }  # fmt: skip
    assert found["model.layers.1.self_attn.q_proj"].note == "vLLM loads it as one with model.layers.1.self_attn.k_proj"


def test_notes_and_errors_of_a_fused_set_that_stays(llama: Make) -> None:
    """Only what would have been packed is told why it is not, and what is named exactly is still an error."""
    block, q, k = "model.layers.1.self_attn", *(f"model.layers.1.self_attn.{letter}_proj" for letter in "qk")
    one, both = with_obstacle(llama(), k), llama()
    for part in (q, k):
        both = with_obstacle(both, part)
    plan = plan_of(one, ("linear", "int8"), (q, "keep"))
    notes = {row.module.name: row.note for row in plan.rows if row.module.name.startswith(block)}
    assert notes[q] == ""
    assert notes[f"{block}.v_proj"] == f"vLLM loads it as one with {k}"
    plan = plan_of(one, ("linear", "int8"), ("attention.qkv", "keep"))
    assert not any(row.note for row in plan.rows)  # that is what the rule says
    for inventory, name in ((one, k), (both, q)):
        problems = refusal(inventory, ("linear", "int8"), (name, "int8"))
        assert problems[0].startswith(f"{name}: cannot be packed: model code reads its weight")
    assert len(refusal(one, ("linear", "int8"), (k, "int8"))) == 1


def test_what_nobody_should_overlook(llama: Make) -> None:
    inventory = llama()
    assert plan_of(inventory, ("linear", "int8")).warnings == ()
    (warning,) = plan_of(replace(inventory, untried="it does not run"), ("linear", "int8")).warnings
    assert "would be packed is not known (it does not run); if the result does not run, keep" in warning
    size = plan_of(inventory, ("linear", "int8")).bytes_after
    for parameters, said in ((size // 300, False), (size // 100, True)):  # of 2 bytes each
        outside = ModuleInfo("model.other", "linear", (1, parameters), parameters)
        more = replace(inventory, modules=(*inventory.modules, outside))
        warnings = plan_of(more, ("linear", "int8")).warnings
        assert [warning.endswith("the first is model.other") for warning in warnings] == [True] * said


def test_budget_of_size(llama: Make) -> None:
    size = plan_of(llama(), ("linear", "int8")).bits_per_weight
    plan_of(llama(), ("linear", "int8"), budget={"bits_per_weight": size})
    (problem,) = refusal(llama(), ("linear", "int8"), budget={"bits_per_weight": size - 0.01})
    assert f"{size:.3f} bits per weight" in problem
    assert "the largest parts are model.layers.*.mlp.gate_proj" in problem


def test_plan_is_plain_data(llama: Make) -> None:
    plan = plan_of(llama(tied=True), ("linear", "int4-g128"))
    data = json.loads(json.dumps(plan.to_dict()))
    assert data["parameters"] == plan.inventory.parameters
    assert data["dtype"] == "bfloat16"
    assert sum(row["bytes_after"] for row in data["rows"]) == data["bytes_after"] == plan.bytes_after
    assert load_recipe(data["recipe"]) == plan.recipe


@pytest.mark.parametrize("name", preset_names())
@pytest.mark.parametrize(("hidden", "width"), [(256, 768), (64, 172), (128, 352)])
def test_presets_fit_small_models(llama: Make, name: str, hidden: int, width: int) -> None:
    plan = make_plan(load_recipe(name), llama(hidden=hidden, width=width, tied=True))
    assert plan.quantized
    assert plan.bytes_after < plan.bytes_before


def test_the_first_recipe_of_the_docs_can_be_planned(repository: Path, tmp_path: Path) -> None:
    """With a text in place of the user's."""
    page = (repository / "docs" / "recipes.md").read_text(encoding="utf-8")
    recipe, text = tmp_path / "recipe.yaml", tmp_path / "text.txt"
    text.write_text("A text. " * 20000, encoding="utf-8")
    block = page.partition("```yaml\n")[2].partition("```")[0]
    assert "my-text.jsonl" in block
    recipe.write_text(block.replace("my-text.jsonl", str(text)), encoding="utf-8")
    made = api.plan(repository / "examples" / "demo_model", recipe)
    assert {row.scheme.name for row in made.quantized} == {"int4-g128", "int8"}


names = st.sampled_from([*NAMED_SETS, "*", "*.down_proj", "*.q_proj", "re:.*layers.1.*", "model.layers.0.mlp.up_proj"])


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(names, st.sampled_from(["int8", "int4-g128", "int4-g32", "keep"])), min_size=1, max_size=4))
def test_any_rules_give_a_sound_plan_or_reasons(llama: Make, rules: list[tuple[str, str]]) -> None:
    try:
        plan = plan_of(llama(blocks=2), *rules)
    except PlanError:
        return
    fused: dict[str, set[Scheme]] = {}
    for row in plan.rows:
        if row.module.fused:
            fused.setdefault(row.module.fused, set()).add(row.scheme)
        if row.scheme != KEEP:
            assert row.module.kind in ("linear", "embedding")
            assert row.scheme.divides(row.module.shape[1])
            assert row.bytes_after < row.bytes_before
        else:
            assert row.bytes_after == row.bytes_before
    assert all(len(found) == 1 for found in fused.values())
    assert {row.rule for row in plan.rows} >= {f"rule {i + 1}: {m} -> {s}" for i, (m, s) in enumerate(rules)}
