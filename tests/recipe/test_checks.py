"""Every problem of a recipe with a model, each with its fix."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llmquant.errors import PlanError
from llmquant.models.inventory import Inventory
from llmquant.recipe.load import load_recipe
from llmquant.recipe.plan import make_plan
from tests.recipe.plans import Make, plan_of, refusal, with_obstacle


def test_indivisible_without_a_word_is_an_error(llama: Make) -> None:
    (problem,) = refusal(llama(width=172), ("linear", "int4-g32"))
    assert problem.startswith("model.layers.{0..2}.mlp.down_proj: groups of 32 do not divide its 172 inputs")
    assert "if_indivisible: channel" in problem
    assert "rule 1, linear -> int4-g32" in problem
    (problem,) = refusal(llama(width=172), ("linear", "int4-g128", ["g64", "g32"]))
    assert "nor does any of if_indivisible: [g64, g32]" in problem


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("mlp.dwon", "rule 2 (mlp.dwon -> keep): 'mlp.dwon' matches nothing; did you mean 'mlp.down'?"),
        ("*.down_prj", "'*.down_prj' matches nothing; did you mean '*.down_proj'"),
        ("model.layers.0.mlp.dwn_proj", "did you mean 'model.layers.0.mlp.down_proj'"),
        ("down_proj", "'down_proj' matches nothing; did you mean"),
        ("model.layers.0", "'model.layers.0' has no weight of its own; did you mean 'model.layers.0.*'?"),
        ("re:nothing", "'re:nothing' matches nothing; names look like model.layers.0.self_attn.q_proj"),
        (r"re:a\.b", r"rule 2 (re:a\.b -> keep): 're:a\.b' matches nothing"),
        (r"re:lm\_.*", r"'re:lm\_.*' fits only protected modules"),
        ("re:lm_.*", "'re:lm_.*' fits only protected modules (lm_head), which patterns never reach"),
        ("experts", "this model has no experts (the experts of a mixture of experts); remove the pattern"),
    ],
)
def test_dead_rule(llama: Make, pattern: str, expected: str) -> None:
    (problem,) = refusal(llama(), ("linear", "int8"), (pattern, "keep"))
    assert expected in problem


def test_dead_entry_of_a_list(llama: Make) -> None:
    (problem,) = refusal(llama(), ("linear", "int8"), (["mlp.down", "router"], "keep"))
    assert "this model has no router" in problem


def test_rule_that_later_rules_override_everywhere(llama: Make) -> None:
    problems = refusal(llama(), ("mlp.down", "int8"), ("linear", "int4-g128"))
    assert problems == [
        "rule 1 (mlp.down -> int8) decides nothing: later rules override it everywhere; move it down or remove it"
    ]


def test_recipe_that_keeps_everything(llama: Make) -> None:
    (problem,) = refusal(llama(), ("linear", "keep"))
    assert "nothing would be quantized" in problem


@pytest.mark.parametrize(
    ("rule", "where", "part"),
    [
        (("*.q_proj", "int8"), "model.layers.{0..2}.self_attn", "attention.qkv"),
        (("*.up_proj", "keep"), "model.layers.{0..2}.mlp", "mlp.gate_up"),
        (("model.layers.1.self_attn.v_proj", "int4-g64"), "model.layers.1.self_attn", "attention.qkv"),
    ],
)
def test_split_fused_set(llama: Make, rule: tuple[str, str], where: str, part: str) -> None:
    (problem,) = refusal(llama(), ("linear", "int4-g128"), rule)
    assert problem.startswith(f"{where}: vLLM loads these as one layer, so they need one scheme")
    assert f"`match: {part}`" in problem
    assert rule[1] in problem


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ([("lm_head", "int8")], "model.embed_tokens keep, lm_head int8"),
        ([("embedding", "int8"), ("lm_head", "keep")], "model.embed_tokens int8, lm_head keep"),
        ([("embedding", "int8"), ("lm_head", "int4-g32")], "model.embed_tokens int8, lm_head int4-g32"),
    ],
)
def test_a_tied_weight_has_one_scheme(llama: Make, rules: list[tuple[str, str]], said: str) -> None:
    (problem,) = refusal(llama(tied=True), ("linear", "int8"), *rules, portable=False)
    assert problem.startswith("lm_head: one weight serves as embedding and lm_head (tie_word_embeddings)")
    assert said in problem


@pytest.mark.parametrize(
    ("match", "scheme", "expected"),
    [
        ("model.layers.0.input_layernorm", "int8", "norm modules cannot be quantized"),
        ("router", "int8", "model.layers.{0..2}.mlp.gate: router modules cannot be quantized"),
        ("experts", "int8", "experts cannot be quantized yet; drop the rule, which keeps them, or say keep"),
        ("mlp.down", "w8a8-static", "use w8a8-dynamic"),
    ],
)
def test_unsupported_modules_and_schemes(llama: Make, match: str, scheme: str, expected: str) -> None:
    rules = [("linear", "int8"), ("experts", "keep"), (match, scheme)]
    problems = refusal(llama(experts=True), *(rules if match != "experts" else [rules[0], rules[2]]))
    assert any(expected in problem for problem in problems), problems
    assert len(problems) == 1


def test_what_cannot_be_packed_is_an_error_where_exactly_it_is_named(llama: Make) -> None:
    inventory = with_obstacle(llama(), "1.mlp.down_proj")
    name = "model.layers.1.mlp.down_proj"
    (problem,) = refusal(inventory, ("linear", "int8"), (name, "int4-g32"))
    assert problem.startswith(f"{name}: cannot be packed: model code reads its weight; keep it (rule 2")
    assert plan_of(inventory, ("linear", "int8"), (name, "keep")).rows


def test_nothing_left_to_quantize(llama: Make) -> None:
    (problem,) = refusal(with_obstacle(llama(), "layers"), ("linear", "int8"))
    assert problem == "nothing would be quantized: model code reads its weight"
    (problem,) = refusal(llama(hidden=40, width=40), ("linear", "int4-g32", "keep"))
    assert problem.startswith("nothing would be quantized: groups of 32 do not divide 40 inputs, so keep")


def test_all_problems_are_told_at_once(llama: Make) -> None:
    problems = refusal(
        llama(width=172, experts=True),
        ("linear", "int4-g32"),
        ("*.q_proj", "int8"),
        ("mlp.dwon", "keep"),
        ("embedding", "w8a8-dynamic"),
        ("experts", "int8"),
    )
    words = [
        *("matches nothing", "an embedding has no", "do not divide", "experts cannot be", "vLLM loads these"),
        "packed embeddings",
    ]
    assert [next(word for word in words if word in problem) for problem in problems] == words


def test_thousands_of_patterns_that_match_nothing_give_a_message_that_can_be_read(
    llama: Callable[..., Inventory],
) -> None:
    names = [f"model.layers.*.nothing{number}" for number in range(2000)]
    rules = [{"match": names, "scheme": "int8"}, *({"match": "linear", "scheme": "int8"} for _ in range(500))]
    with pytest.raises(PlanError) as caught:
        make_plan(load_recipe({"version": 1, "rules": rules}), llama())
    message = str(caught.value)
    assert "1990 more patterns match nothing" in message
    assert "more problems" in message
    assert len(message) < 8000
    assert len(str(load_recipe({"version": 1, "rules": rules}).rules[0])) < 300
