"""Every format has what `base.Format` says, under the name that recipes use."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

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


def test_the_format_of_the_docs_works(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (repository / "docs" / "extending.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    (module,) = (block for block in blocks if 'NAME = "plain"' in block)
    (test,) = (block for block in blocks if "def test_plain" in block)
    (tmp_path / "plain.py").write_text(module, encoding="utf-8")
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path)])
    monkeypatch.chdir(repository)
    try:
        test_contract("plain")
        names: dict[str, Any] = {}
        exec(test, names)
        names["test_plain"](tmp_path)
    finally:
        sys.modules.pop("llmquant.formats.plain", None)


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
