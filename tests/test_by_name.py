"""Messages about a name that is not there: sentences, whether or not a known name is near."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llmquant import formats
from llmquant.errors import RecipeError
from llmquant.eval import metrics
from llmquant.recipe.load import load_recipe


def recipe_of_format(name: str) -> Any:
    return load_recipe({"version": 1, "rules": [{"match": "linear", "scheme": "int8"}], "format": name})


@pytest.mark.parametrize(
    ("find", "name", "message"),
    [
        (metrics.find, "surprise", "unknown metric 'surprise'. There are: "),
        (metrics.find, "divergense", "unknown metric 'divergense'; did you mean 'divergence'? There are: "),
        (formats.find, "xyz", "unknown format 'xyz'. There are: "),
        (recipe_of_format, "xyz", "unknown format 'xyz'. There are: compressed-tensors, gguf"),
        (recipe_of_format, "ggu", "unknown format 'ggu'; did you mean 'gguf'? There are: compressed-tensors, gguf"),
    ],
)
def test_unknown_names(find: Callable[[str], Any], name: str, message: str) -> None:
    with pytest.raises(RecipeError) as raised:
        find(name)
    assert message in str(raised.value)
