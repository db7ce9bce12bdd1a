"""YAML: lines, duplicate keys, bombs, malformed text."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from llmquant.errors import RecipeError
from llmquant.recipe.yaml_nodes import MAX_CHARACTERS, MAX_INTEGER, RecipeDumper, parse_yaml


def test_lines_of_keys_and_items() -> None:
    document = parse_yaml("a: 1\nb:\n  - x\n  -\n    c: 2\n", "f")
    assert document.data == {"a": 1, "b": ["x", {"c": 2}]}
    assert [document.line(path) for path in [("a",), ("b",), ("b", 0), ("b", 1, "c")]] == [1, 2, 3, 5]


def test_line_of_a_missing_key_is_that_of_its_parent() -> None:
    assert parse_yaml("a:\n  b: 1\n", "f").line(("a", "missing")) == 1


@pytest.mark.parametrize("text", ["1e-2", "1.0e-2", "0.01", "+1E-2"])
def test_numbers_with_exponents_are_numbers(text: str) -> None:
    assert parse_yaml(f"x: {text}", "f").data == {"x": 0.01}


integers = st.integers(1 - MAX_INTEGER, MAX_INTEGER - 1)
scalars = st.none() | st.booleans() | integers | st.floats(allow_nan=False) | st.text()


@settings(max_examples=50)
@given(st.dictionaries(st.text(min_size=1), scalars | st.lists(scalars, max_size=3), min_size=1, max_size=4))
def test_what_is_dumped_is_read_back(data: dict[str, object]) -> None:
    data = {f"key {key}": value for key, value in data.items()}  # a key such as "1" would be read as its text
    assert parse_yaml(yaml.dump(data, Dumper=RecipeDumper), "f").data == data


@settings(max_examples=50)
@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(RecipeError):
        parse_yaml(text, "f")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f: empty"),
        ("# only a comment\n", "f: empty"),
        ("a: [1\n", "f:2: not valid YAML"),
        ("a: 1\n\tb: 2\n", "f:2: not valid YAML"),
        ("a: 1\x07", "f: not valid YAML: unacceptable character"),
        ("a: 1\n---\nb: 2\n", "f:2: not valid YAML"),
        ("a: 1\nb: 2\na: 3\n", "f:3: the key 'a' is given twice; first on line 1"),
        ("? [1]\n: 2\n", "f:1: a key must be a word"),
        ("a: !!python/object:os.system x", "f:1: cannot read the value 'x'"),
        ("a: 2026-99-99", "f:1: cannot read the value '2026-99-99'"),
        ("a: *b", "f:1: not valid YAML: found undefined alias"),
        ("[" * 20_000, "f: nested too deeply"),
        ("a: " + "x" * MAX_CHARACTERS, "characters are too many"),
    ],
)
def test_bad_text_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_yaml(text, "f")
    assert message in str(caught.value)


def test_anchor_bomb_and_cycle_end_at_once() -> None:
    bomb = "a0: &a0 [x, x, x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
    start = time.monotonic()
    for text in (bomb, "a: &a [*a]"):
        with pytest.raises(RecipeError, match="too many values"):
            parse_yaml(text, "f")
    assert time.monotonic() - start < 5


def test_a_few_aliases_are_fine() -> None:
    assert parse_yaml("a: &x {b: 1}\nc: *x\n", "f").data == {"a": {"b": 1}, "c": {"b": 1}}
