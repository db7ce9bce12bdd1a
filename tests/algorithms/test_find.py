"""Algorithms are found by file name; a misspelt one gets a suggestion."""

from __future__ import annotations

import pytest

from llmquant import algorithms
from llmquant.errors import RecipeError


def test_names_are_the_public_files() -> None:
    found = algorithms.names()
    assert {"rtn", "gptq"} <= set(found)
    assert found == sorted(found)
    assert not {"base", "_loss"} & set(found)


def test_find_returns_the_module() -> None:
    assert getattr(algorithms.find("gptq"), "__name__", None) == "llmquant.algorithms.gptq"


@pytest.mark.parametrize("name", ["gtpq", "GPTQ"])
def test_misspelt_name(name: str) -> None:
    match = r"unknown rounding method '\w+'.* There are: .*gptq, .*rtn"
    with pytest.raises(RecipeError, match=match):
        algorithms.find(name)


def test_suggestion() -> None:
    with pytest.raises(RecipeError, match="did you mean 'gptq'"):
        algorithms.find("gtpq")


@pytest.mark.parametrize("name", ["base", "_loss", "rtn.quantize", "../rtn", ""])
def test_what_is_no_algorithm(name: str) -> None:
    with pytest.raises(RecipeError, match="unknown rounding method"):
        algorithms.find(name)
