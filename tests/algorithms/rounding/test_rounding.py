"""Algorithms are found by file name; a misspelt one gets a suggestion."""

from __future__ import annotations

import pytest

from llmquant.algorithms import rounding
from llmquant.errors import RecipeError


def test_names_are_the_public_files() -> None:
    found = rounding.names()
    assert {"rtn", "gptq"} <= set(found)
    assert found == sorted(found)
    assert not {"base", "shared"} & set(found)


def test_find_returns_the_module() -> None:
    assert getattr(rounding.find("gptq"), "__name__", None) == "llmquant.algorithms.rounding.gptq"


@pytest.mark.parametrize("name", ["gtpq", "GPTQ"])
def test_misspelt_name(name: str) -> None:
    match = r"unknown rounding method '\w+'.* There are: .*gptq, .*rtn"
    with pytest.raises(RecipeError, match=match):
        rounding.find(name)


def test_suggestion() -> None:
    with pytest.raises(RecipeError, match="did you mean 'gptq'"):
        rounding.find("gtpq")


@pytest.mark.parametrize("name", ["base", "shared", "rtn.quantize", "../rtn", ""])
def test_what_is_no_algorithm(name: str) -> None:
    with pytest.raises(RecipeError, match="unknown rounding method"):
        rounding.find(name)
