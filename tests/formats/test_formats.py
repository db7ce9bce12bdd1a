"""Every format has what `base.Format` says, under the name that recipes use."""

from __future__ import annotations

import inspect

import pytest
import torch

from llmquant import formats
from llmquant.errors import RecipeError
from llmquant.formats.base import Format
from llmquant.recipe.load import load_recipe
from llmquant.recipe.schema import canonical_json, recipe_to_dict
from llmquant.spec import Scheme

METHODS = [name for name in vars(Format) if not name.startswith("_") and callable(getattr(Format, name))]


@pytest.mark.parametrize("name", formats.names())
def test_contract(name: str) -> None:
    found = formats.find(name)
    assert name == found.NAME
    assert isinstance(found.UNIT_SUFFIX, str)
    assert isinstance(found.FUSED_BY, str)
    for method in METHODS:
        wanted = list(inspect.signature(getattr(Format, method)).parameters)[1:]
        assert list(inspect.signature(getattr(found, method)).parameters) == wanted, method


@pytest.mark.parametrize("name", formats.names())
def test_what_stays_keeps_its_numbers(name: str) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for shape in ((8,), (8, 32)):
            stored = formats.find(name).kept_dtype(shape, dtype)
            assert torch.promote_types(stored, dtype) == stored


def test_unknown_formats() -> None:
    rules = [{"match": "linear", "scheme": "int8"}]
    with pytest.raises(RecipeError, match=r"unknown format 'compressed-tensor'; did you mean 'compressed-tensors'\?"):
        load_recipe({"version": 1, "rules": rules, "format": "compressed-tensor"})
    for name in ("base", "safetensors_file", "__init__", ""):
        with pytest.raises(RecipeError):
            load_recipe({"version": 1, "rules": rules, "format": name})
    with pytest.raises(RecipeError, match="unknown format 'safetensors_file'"):
        formats.find("safetensors_file")


def test_the_default_is_written_nowhere() -> None:
    """Recipes, their digests and journals are as they were before there was a second format."""
    rules = [{"match": "linear", "scheme": "int8"}]
    plain, named = (load_recipe({"version": 1, "rules": rules} | more) for more in ({}, {"format": formats.DEFAULT}))
    assert plain == named
    assert "format" not in recipe_to_dict(plain)
    assert canonical_json(plain) == canonical_json(named) == (
        '{"description":"","name":"custom","portable":true,"rounding":{"method":"rtn"},'
        '"rules":[{"match":"linear","scheme":"int8"}],"version":1}'
    )  # fmt: skip


def test_a_plan_has_the_dtypes_of_its_format() -> None:
    found = formats.find(formats.DEFAULT)
    scheme = Scheme.parse("int4-g32")
    assert found.scale_dtype(scheme, torch.bfloat16) == found.dense_dtype(torch.bfloat16) == torch.bfloat16
