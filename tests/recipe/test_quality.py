"""Recipes by a scheme and a quality."""

from __future__ import annotations

import pytest

from llmquant.errors import RecipeError
from llmquant.recipe.load import load_recipe
from llmquant.recipe.presets import preset_names, preset_text
from llmquant.recipe.quality import OF_BITS, QUALITIES, SCHEMES, quality_names, quality_text, recipe_name
from llmquant.spec import KEEP, Scheme


@pytest.mark.parametrize("quality", QUALITIES)
@pytest.mark.parametrize(
    ("scheme", "fallbacks"),
    [
        ("int4-g128", ["int4-g64", "int4-g32", "int4"]),
        ("int4-g128-asym", ["int4-g64-asym", "int4-g32-asym", "int4-asym"]),
        ("int3-g64", ["int3-g32", "int3"]),
        ("int2-g32", ["int2"]),
        ("int8", []),
        ("int4-tensor", []),
    ],
)
def test_any_scheme_of_weights(scheme: str, fallbacks: list[str], quality: str) -> None:
    recipe = load_recipe(f"{scheme}-{quality}")
    (rule,) = recipe.rules
    assert recipe.name == f"{scheme}-{quality}"
    assert rule.scheme == scheme
    assert [str(each) for each in rule.fallbacks] == fallbacks
    assert recipe.description.startswith(f"{scheme}, " if quality == "fast" else f"{scheme} by ")
    text = preset_text(f"{scheme}-{quality}")
    assert text.startswith(f"# {scheme} ")
    assert not any(word in text for word in ("SCHEME", "FALLBACKS"))


def test_what_each_quality_takes() -> None:
    fast, balanced, high = (load_recipe(f"int4-g32-{quality}") for quality in QUALITIES)
    assert (fast.calibration, fast.qat) == (None, None)
    assert [step.method for step in balanced.tuning] == [step.method for step in high.tuning] == ["block_ap"]
    assert balanced.qat is None
    assert high.training_text == "builtin:mixed"
    assert balanced.calibration
    assert high.calibration
    assert balanced.calibration.samples < high.calibration.samples


@pytest.mark.parametrize("name", ["int5-g32-high", "w8a8-dynamic-high", "keep-fast", "high", "-high", "int4-g32-"])
def test_what_is_no_such_recipe(name: str) -> None:
    assert quality_text(name) is None
    with pytest.raises(RecipeError, match="unknown preset"):
        load_recipe(name)


def test_a_slip_is_named() -> None:
    with pytest.raises(RecipeError, match="did you mean 'int4-g32-balanced'"):
        load_recipe("int4-g32-balnced")


def test_listed_recipes_and_bits() -> None:
    assert len(quality_names()) == len(SCHEMES) * len(QUALITIES) == 18
    assert set(quality_names()) <= set(preset_names())
    for bits in OF_BITS:
        for quality in QUALITIES:
            assert Scheme.parse(load_recipe(recipe_name(bits, quality)).rules[0].scheme).bits == bits
    assert KEEP.bits not in OF_BITS
