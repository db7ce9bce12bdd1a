"""Patterns: sets, names, globs, expressions, and what they never reach."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llmquant.errors import PatternError
from llmquant.models.inventory import Inventory
from llmquant.recipe.match import Pattern


@pytest.mark.parametrize(
    ("text", "kind", "count"),
    [
        ("linear", "set", 21),
        ("attention", "set", 12),
        ("attention.qkv", "set", 9),
        ("attention.o", "set", 3),
        ("mlp", "set", 9),
        ("mlp.gate_up", "set", 6),
        ("mlp.down", "set", 3),
        ("first_block", "set", 7),
        ("last_block", "set", 7),
        ("lm_head", "set", 1),
        ("embedding", "set", 1),
        ("experts", "set", 3),
        ("router", "set", 3),
        ("model.layers.1.mlp.up_proj", "name", 1),
        ("model.layers.1.input_layernorm", "name", 1),
        ("model.layers.1", "name", 0),
        ("*", "glob", 21),
        ("*.down_proj", "glob", 3),
        ("model.layers.[0-1].*", "glob", 14),
        ("model.layers.?.mlp.down_proj", "glob", 3),
        ("*.DOWN_PROJ", "glob", 0),
        ("*embed*", "glob", 0),
        ("re:.*", "regex", 21),
        (r"re:model\.layers\.(0|2)\..*_proj", "regex", 14),
        ("re:down_proj", "regex", 0),
        ("re:lm_head", "regex", 0),
    ],
)
def test_patterns(llama: Callable[..., Inventory], text: str, kind: str, count: int) -> None:
    pattern = Pattern.parse(text)
    assert pattern.kind == kind
    assert sum(map(pattern.matches, llama(experts=True).modules)) == count


@pytest.mark.parametrize(
    ("text", "message"), [("", "empty"), ("  ", "empty"), ("re:[", "bad regular expression '\\['")]
)
def test_bad_patterns(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pattern.parse(text)


@pytest.mark.parametrize("text", ["re:a{99999999999}", "re:" + "(" * 400 + ")" * 400, "*" * 2000, "re:[[a]"])
def test_patterns_that_no_engine_takes(text: str) -> None:
    with pytest.raises(ValueError, match=r"bad regular expression|at most 1000"):
        Pattern.parse(text)


def test_an_expression_that_never_ends_is_an_error(llama: Callable[..., Inventory]) -> None:
    with pytest.raises(PatternError, match="takes too long"):
        list(map(Pattern.parse("re:(?:(?:.|..)*)*[!?]").matches, llama().modules))
