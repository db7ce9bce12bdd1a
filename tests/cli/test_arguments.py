"""What verbs share."""

from __future__ import annotations

import argparse
import io
import sys

import pytest

from llmquant.cli.arguments import STDOUT, chosen_recipe, model_and_recipe, write_json
from llmquant.errors import RecipeError


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    model_and_recipe(parser, "a model")
    return parser.parse_args(["MODEL", *words])


@pytest.mark.parametrize(
    ("words", "recipe"),
    [
        (["-r", "mine.yaml"], "mine.yaml"),
        (["--bits", "4"], "int4-g128-balanced"),
        (["--bits", "3", "--quality", "high"], "int3-g32-high"),
        (["--bits", "8", "--quality", "fast"], "int8-fast"),
    ],
)
def test_recipe_or_bits(words: list[str], recipe: str) -> None:
    assert chosen_recipe(parsed(*words)) == recipe


@pytest.mark.parametrize(
    "words", [[], ["-r", "int8", "--bits", "4"], ["--bits", "5"], ["--bits", "4", "--quality", "x"]]
)
def test_neither_and_both(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(*words)
    assert "--bits" in capsys.readouterr().err


def test_a_recipe_has_its_quality() -> None:
    with pytest.raises(RecipeError, match="int4-g64-balanced"):
        chosen_recipe(parsed("-r", "int4-g64", "--quality", "high"))


def test_json_is_utf_8_whatever_the_terminal_can(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", errors="replace"))
    write_json(STDOUT, '"mod\u00e8l"')
    assert written.getvalue().decode("utf-8") == '"mod\u00e8l"'
