"""Methods in recipes: transforms, rounding and tuning, found by name, and absent where a recipe names none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from llmquant.errors import RecipeError
from llmquant.recipe.load import dump_recipe, load_recipe
from llmquant.recipe.presets import file_names
from llmquant.recipe.schema import Recipe, canonical_json, recipe_to_dict

MIXED = {"dataset": "builtin:mixed"}


def recipe_with(**keys: Any) -> Recipe:
    return load_recipe({"version": 1, "rules": [{"match": "linear", "scheme": "int8"}], **keys})


def test_a_recipe_without_them_is_what_it_was() -> None:
    recipe = recipe_with()
    assert canonical_json(recipe) == (
        '{"description":"","name":"custom","portable":true,"rounding":{"method":"rtn"},'
        '"rules":[{"match":"linear","scheme":"int8"}],"version":1}'
    )
    assert canonical_json(recipe) == canonical_json(recipe_with(transforms=[], tuning=[]))
    for name in file_names():
        assert not {"transforms", "tuning"} & recipe_to_dict(load_recipe(name)).keys()


def test_transforms_and_tuning_are_read_and_written(tmp_path: Path) -> None:
    recipe = recipe_with(
        transforms=[{"method": "smoothquant", "alpha": 0.4}],
        tuning=[{"method": "scale_refit"}, {"method": "scale_refit", "steps": 3}],
        calibration=MIXED,
    )
    assert recipe.transforms[0].build_options().alpha == 0.4
    assert [step.build_options().steps for step in recipe.tuning] == [64, 3]
    assert recipe.calibrated == ("scale_refit", "smoothquant")
    text = dump_recipe(recipe)
    assert text.index("transforms:") < text.index("rounding:") < text.index("tuning:")
    (tmp_path / "custom.yaml").write_text(text)
    assert load_recipe(tmp_path / "custom.yaml") == recipe
    assert canonical_json(recipe) != canonical_json(recipe_with(calibration=MIXED))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"transforms": [{"method": "smothquant"}]}, "transforms.*did you mean 'smoothquant'"),
        ({"transforms": [{"alpha": 0.5}]}, "transforms.*method"),
        ({"transforms": [{"method": "smoothquant", "beta": 1}]}, "smoothquant has no option 'beta'"),
        ({"transforms": [{"method": "smoothquant", "alpha": 2.0}]}, "alpha is a share in 0 to 1, not 2.0"),
        ({"tuning": [{"method": "scale_refit", "steps": 0}]}, "steps is at least 1, not 0"),
        ({"tuning": [{"method": "scale_refit", "rate": "x"}]}, "should be a valid number; got 'x'"),
        ({"tuning": [{"method": "rtn"}]}, "unknown tuning method 'rtn'"),
        ({"transforms": [{"method": "smoothquant"}]}, "smoothquant needs calibration text"),
        ({"tuning": [{"method": "scale_refit"}]}, "scale_refit needs calibration text"),
        ({"qat": {"text": "novel"}}, "cannot tell what 'novel' is"),
        ({"qat": {"text": "calibration"}}, "text is that of the calibration, and there is none"),
    ],
)
def test_mistakes_are_named(keys: dict[str, Any], message: str) -> None:
    with_text = {} if re.search("needs calibration|there is none", message) else {"calibration": MIXED}
    with pytest.raises(RecipeError) as caught:
        recipe_with(**keys, **with_text)
    assert re.search(message, str(caught.value))
