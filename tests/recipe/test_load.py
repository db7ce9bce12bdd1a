"""Recipes: round trips, presets, and every mistake with its file, line, key and nearest right word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmquant.errors import RecipeError
from llmquant.recipe.load import dump_recipe, load_recipe, preset_names, preset_text
from llmquant.recipe.schema import Recipe, canonical_json, recipe_to_dict
from llmquant.recipe.yaml_nodes import parse_yaml
from llmquant.spec import KEEP, Scheme

ONE_RULE = [{"match": "linear", "scheme": "int8"}]


def refusal(tmp_path: Path, text: str) -> list[str]:
    """The lines of the error that a recipe file gives, without the folder."""
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    return [line.removeprefix(f"{tmp_path}/") for line in str(caught.value).splitlines()]


def test_minimal_recipe_and_its_defaults(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("version: 1\nrules:\n  - match: linear\n    scheme: int4-g32\n")
    recipe = load_recipe(str(path))
    assert recipe.name == "mine"
    assert recipe.rules[0].match == ("linear",)
    assert recipe.rules[0].parsed == Scheme(4, "group", 32)
    assert recipe.rounding.method == "rtn"
    assert (recipe.calibration, recipe.budget, recipe.portable) == (None, None, True)
    assert recipe.calibrated == ()


def test_full_recipe() -> None:
    recipe = load_recipe(
        {
            "version": 1,
            "name": "full",
            "rules": [
                {"match": ["linear", "re:.*x"], "scheme": "int4-g128", "if_indivisible": ["g32", "keep"]},
                {"match": "mlp.down", "scheme": "int8", "rounding": {"method": "rtn"}},
                {"match": "lm_head", "scheme": "keep"},
            ],
            "rounding": {"method": "gptq", "damp": 0.05, "order": "group"},
            "calibration": {"dataset": "mine.txt", "samples": 8, "length": 64, "seed": 3},
            "budget": {"kl": 0.1, "bits_per_weight": 5},
            "portable": False,
        }
    )
    assert recipe.rounding.options == {"damp": 0.05, "order": "group"}
    assert recipe.rounding.build_options().damp == 0.05
    assert recipe.rules[0].fallbacks == (Scheme(4, "group", 32), KEEP)
    assert [rounding.method for rounding in recipe.roundings] == ["gptq", "rtn"]
    assert recipe.calibrated == ("gptq",)
    assert load_recipe(recipe) is recipe


schemes = st.builds(
    lambda bits, size, asym: f"int{bits}{size}{asym}",
    st.sampled_from([2, 3, 4, 8]),
    st.sampled_from(["", "-g32", "-g128", "-tensor"]),
    st.sampled_from(["", "-asym"]),
) | st.just("keep")
patterns = st.text(alphabet="abcq_.*?0123", min_size=1).filter(str.strip) | st.sampled_from(["linear", "re:a.*"])
rules = st.fixed_dictionaries(
    {"match": patterns | st.lists(patterns, min_size=1, max_size=3, unique=True), "scheme": schemes},
    optional={
        "rounding": st.fixed_dictionaries({"method": st.just("rtn"), "grid": st.sampled_from(["absmax", "mse"])})
    },
)
recipes = st.fixed_dictionaries(
    {"version": st.just(1), "rules": st.lists(rules, min_size=1, max_size=3)},
    optional={
        "name": st.text(min_size=1),
        "description": st.text(),
        "calibration": st.fixed_dictionaries({}, optional={"samples": st.integers(1, 9), "column": st.text()}),
        "budget": st.fixed_dictionaries({}, optional={"kl": st.floats(1e-9, 1e9)}),
        "portable": st.booleans(),
    },
)


@settings(max_examples=50)
@given(recipes)
def test_round_trips(data: dict[str, Any]) -> None:
    recipe = load_recipe(data)
    assert load_recipe(recipe_to_dict(recipe)) == recipe
    text = dump_recipe(recipe)
    assert load_recipe(parse_yaml(text, "dumped").data) == recipe
    again = Recipe.model_validate_json(canonical_json(recipe), strict=False)
    assert canonical_json(again) == canonical_json(recipe)


def test_digest_depends_on_content_alone() -> None:
    first = load_recipe({"version": 1, "rules": ONE_RULE, "portable": True})
    same = load_recipe({"portable": True, "rules": [{"scheme": "int8", "match": ["linear"]}], "version": 1})
    other = load_recipe({"version": 1, "rules": ONE_RULE, "portable": False})
    assert canonical_json(first) == canonical_json(same) != canonical_json(other)


def test_presets_load_and_explain_themselves() -> None:
    expected = {
        "int8", "int8-g128", "int4-g128", "int4-g32", "int4-g128-asym", "int4-g128-gptq", "int4-g32-gptq",
        "mixed-int4-int8", "int3-g32", "int3-g32-gptq", "w8a8-dynamic", "int4-g32-full", "int8-full",
    }  # fmt: skip
    assert expected <= set(preset_names())
    for name in preset_names():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.description
        assert preset_text(name).startswith("# ")
        assert (recipe.calibration is not None) == (recipe.rounding.method == "gptq")
        if recipe.calibration:
            assert recipe.calibration.dataset == "builtin:mixed"


RULES = "version: 1\nrules:\n  - match: linear\n    scheme: int4-g128\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("version: 1\nrule: []\n", "r.yaml:2: rule: unknown key; did you mean 'rules'?"),
        ("version: 1\n", "r.yaml:1: rules: missing"),
        ("version: 1\nrules: []\n", "r.yaml:2: rules: empty; a recipe has at least one rule"),
        ("version: 1\nrules: 3\n", "r.yaml:2: rules: expected a list, got 3"),
        ("version: 1\nrules:\n  - 3\n", "r.yaml:3: rules[0]: expected a mapping of keys to values, got 3"),
        ("rules: []\n", "r.yaml:1: version: no version; this llmquant reads recipes with `version: 1`"),
        ("# c\nversion: 2\n", "r.yaml:2: version: version 2; this llmquant reads"),
        ("version: true\n", "r.yaml:1: version: version True; this llmquant reads"),
        ("- 1\n", "r.yaml: expected keys such as `version: 1` and `rules:`, got list"),
        ("version: 1\nrules:\n- match: linear\n", "r.yaml:3: rules[0].scheme: missing"),
        ("version: 1\nrules:\n- match: []\n  scheme: int8\n", "r.yaml:3: rules[0].match: empty"),
        ("version: 1\nrules:\n- match: ['']\n  scheme: int8\n", "r.yaml:3: rules[0].match: an empty pattern"),
        ("version: 1\nrules:\n- match: [a, a]\n  scheme: int8\n", "r.yaml:3: rules[0].match: named twice: a"),
        ("version: 1\nrules:\n- match: [a, 1]\n  scheme: int8\n", "r.yaml:3: rules[0].match[1]: expected text, got 1"),
        (
            "version: 1\nrules:\n- match: 're:('\n  scheme: int8\n",
            "r.yaml:3: rules[0].match: bad regular expression '('",
        ),
        (
            "version: 1\nrules:\n- match: a\n  shceme: int8\n",
            "r.yaml:4: rules[0].shceme: unknown key; did you mean 'scheme'?",
        ),
        (
            "version: 1\nrules:\n- match: a\n  scheme: int4g128\n",
            "r.yaml:4: rules[0].scheme: unknown scheme 'int4g128'",
        ),
        ("version: 1\nrules:\n- match: a\n  scheme: int4g128\n", "did you mean 'int4-g128'"),
        ("version: 1\nrules:\n- match: a\n  scheme: int5\n", "rules[0].scheme: unknown scheme 'int5'"),
        ("version: 1\nrules:\n- match: a\n  scheme: 8\n", "rules[0].scheme: expected text, got 8"),
        (RULES + "    if_indivisible: g256\n", "r.yaml:5: rules[0].if_indivisible: 'g256' is not smaller than"),
        (RULES + "    if_indivisible: chanel\n", "did you mean 'channel'?"),
        (RULES + "    if_indivisible: [keep, g32]\n", "rules[0].if_indivisible: what follows 'keep' is never tried"),
        (RULES + "    if_indivisible: [g32, g32]\n", "rules[0].if_indivisible: named twice: g32"),
        (
            "version: 1\nrules:\n- match: a\n  scheme: int8\n  if_indivisible: keep\n",
            "r.yaml:5: rules[0].if_indivisible: int8 has no groups",
        ),
        (
            RULES + "    rounding: gptq\n",
            "r.yaml:5: rules[0].rounding: expected a mapping of keys to values, got 'gptq'",
        ),
        (RULES + "rounding:\n  method: gptqq\n", "r.yaml:6: rounding.method: unknown rounding method 'gptqq'"),
        (RULES + "rounding:\n  method: gptqq\n", "did you mean 'gptq'?"),
        (
            RULES + "rounding:\n  method: gptq\n  dampp: 0.1\n",
            "r.yaml:7: rounding.dampp: gptq has no option 'dampp'; did you mean 'damp'?",
        ),
        (
            RULES + "rounding: {method: gptq, damp: '0.1'}\n",
            "r.yaml:5: rounding.damp: should be a valid number; got '0.1'",
        ),
        (RULES + "rounding: {method: gptq, damp: true}\n", "rounding.damp: should be a valid number; got True"),
        (RULES + "rounding: {method: gptq, damp: .nan}\n", "rounding.damp: should be a finite number"),
        (RULES + "rounding: {method: gptq, damp: -1e-1}\n", "rounding.method: "),
        (
            RULES + "rounding: {method: gptq, order: sttic}\n",
            "rounding.order: should be 'static', 'group' or 'none'; got 'sttic'",
        ),
        (RULES + "rounding: {method: 3}\n", "rounding.method: expected text, got 3"),
        (RULES + "rounding: {method: gptq}\n", "calibration: gptq needs calibration text"),
        (RULES + "calibration: {samples: '3'}\n", "r.yaml:5: calibration.samples: expected a whole number, got '3'"),
        (RULES + "calibration: {samples: 0}\n", "calibration.samples: should be greater than or equal to 1, got 0"),
        (RULES + "calibration: {length: true}\n", "calibration.length: expected a whole number, got True"),
        (RULES + "calibration: {sample: 3}\n", "calibration.sample: unknown key; did you mean 'samples'?"),
        (RULES + "calibration: {zzz: 3}\n", "calibration.zzz: unknown key; the keys here are dataset, split, column"),
        (RULES + "calibration: {dataset: wikitext}\n", "or 'hub:wikitext'"),
        (RULES + "calibration: {dataset: my/text.csv}\n", "or 'hub:NAME'"),
        (RULES + "calibration: {dataset: /data/texts}\n", "or 'hub:NAME'"),
        (RULES + "calibration: {dataset: 'builtin:c'}\n", "there are 'builtin:mixed' and 'builtin:python'"),
        (RULES + "calibration: {dataset: 'hub:'}\n", "'hub:' lacks the data set's name"),
        (RULES + "budget: {kl: x}\n", "r.yaml:5: budget.kl: expected a number, got 'x'"),
        (RULES + "budget: {kl: 0}\n", "budget.kl: should be greater than 0, got 0"),
        (RULES + "budget: {bpw: 4}\n", "budget.bpw: unknown key"),
        (RULES + "qat: {rangs: lsq}\n", "r.yaml:5: qat.rangs: unknown key; did you mean 'ranges'"),
        (RULES + "qat: {loss: {kld: 1}}\n", "r.yaml:5: qat.loss.kld: unknown key; did you mean 'kl'?"),
        (RULES + "qat: {lora: {dropout: 0}}\n", "qat.lora.dropout: unknown key; the keys here are rank, alpha"),
        (RULES + "qat: {lora: 8}\n", "r.yaml:5: qat.lora: expected a mapping of keys to values, got 8"),
        (RULES + "portable: 1\n", "portable: expected true or false, got 1"),
        (RULES + "name: ''\n", "name: empty, got ''"),
        (RULES + "<<: {a: 1}\n", "r.yaml:5: <<: unknown key"),
    ],
)
def test_mistakes_name_line_key_and_right_word(tmp_path: Path, text: str, expected: str) -> None:
    lines = refusal(tmp_path, text)
    assert any(expected in line for line in lines), lines
    assert all(line.startswith("r.yaml") for line in lines)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    lines = refusal(tmp_path, "version: 1\nrules:\n  - match: 're:('\n    scheme: int5\nbudgt: 1\nportable: 3\n")
    assert [line.split(" ")[0] for line in lines] == ["r.yaml:3:", "r.yaml:4:", "r.yaml:6:", "r.yaml:5:"]


def test_empty_and_unreadable_files(tmp_path: Path) -> None:
    assert "empty" in refusal(tmp_path, "")[0]
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not a text file in UTF-8"):
        load_recipe(tmp_path / "b.yaml")
    with pytest.raises(RecipeError, match="is not a plain file but a folder"):
        load_recipe(tmp_path)
    with pytest.raises(RecipeError, match=r"no recipe file .*int4-g32\.yaml; did you mean 'int4-g32'"):
        load_recipe(tmp_path / "int4-g32.yaml")


@pytest.mark.parametrize("scheme", ["int4-g64", "int3-g128-asym", "int8-tensor", "w8a8-static"])
def test_the_name_of_a_scheme_is_a_recipe_for_all_linear_layers(scheme: str) -> None:
    recipe = load_recipe(scheme)
    assert (recipe.name, [(rule.match, rule.scheme) for rule in recipe.rules]) == (scheme, [(("linear",), scheme)])


def test_a_preset_goes_before_a_scheme_of_its_name() -> None:
    assert load_recipe("int4-g128").description


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"unknown preset 'int4_g128'.*did you mean 'int4-g128'"):
        load_recipe("int4_g128")
    with pytest.raises(RecipeError, match=r"unknown preset 'zzz'.*presets are int3-g32"):
        load_recipe("zzz")


def test_wrong_kinds_of_source() -> None:
    with pytest.raises(RecipeError, match="not int"):
        load_recipe(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(RecipeError, match="Keys should be strings"):
        load_recipe({1: 2, "version": 1, "rules": ONE_RULE})  # pyright: ignore[reportArgumentType]
