"""Plain data from YAML text, with the line of every key.

The node tree is walked here instead of by PyYAML's constructor, which keeps no lines, accepts duplicate keys and
resolves aliases without a bound (a few lines of them can stand for billions of values).
"""

from __future__ import annotations

import re
import reprlib
from dataclasses import dataclass, field
from typing import Any

import yaml

from llmquant.errors import RecipeError

MAX_CHARACTERS = 256 * 1024
MAX_VALUES = 10_000

MAX_INTEGER = 1 << 63

Path = tuple[str | int, ...]

# What PyYAML raises of its own, and what its code runs into: int("") of `!!int ''`, chr(0xffffffff) of "\\Uffffffff".
_PARSER_ERRORS = (yaml.YAMLError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError)


class RecipeLoader(yaml.SafeLoader):
    """PyYAML's safe loader that also reads 1e-2 as a number, as YAML 1.2 and Python do."""


class RecipeDumper(yaml.SafeDumper):
    """Quotes what `RecipeLoader` would read as a number."""


_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+")
for _class in (RecipeLoader, RecipeDumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


@dataclass(frozen=True, slots=True)
class Document:
    """The content of a YAML file.

    `lines` has the line, from 1, of each key or list item by its path.
    """

    data: Any
    lines: dict[Path, int] = field(default_factory=dict)

    def line(self, path: Path) -> int | None:
        """Line of the path, or of the nearest enclosing key."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return None


def parse_yaml(text: str, source: str) -> Document:
    """Read one YAML document.

    Raises:
        RecipeError: if it is malformed, empty, too large, or holds duplicate keys.
    """
    if len(text) > MAX_CHARACTERS:
        raise RecipeError(f"{source}: {len(text)} characters are too many for a recipe (at most {MAX_CHARACTERS})")
    try:
        loader = RecipeLoader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        raise RecipeError(f"{where}: not valid YAML: {error.problem or error.context}") from error
    except RecursionError as error:
        raise RecipeError(f"{source}: nested too deeply for a recipe") from error
    except _PARSER_ERRORS as error:
        raise RecipeError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from error
    if node is None:
        raise RecipeError(f"{source}: empty; a recipe holds at least `version: 1` and `rules:`")
    walk = _Walk(loader, source)
    walk.lines[()] = node.start_mark.line + 1
    return Document(walk.value(node, ()), walk.lines)


class _Walk:
    def __init__(self, loader: RecipeLoader, source: str) -> None:
        self.loader = loader
        self.source = source
        self.lines: dict[Path, int] = {}
        self.values = 0

    def value(self, node: yaml.Node, path: Path) -> Any:
        self.values += 1
        if self.values > MAX_VALUES or len(path) > 32:  # aliases are counted each time they stand for something
            raise RecipeError(f"{self.source}: too many values for a recipe (at most {MAX_VALUES}, nested 32 deep)")
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.lines[(*path, index)] = item.start_mark.line + 1
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        return self.scalar(node)

    def mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise RecipeError(f"{self.source}:{line}: a key must be a word")
            key = str(key_node.value)
            if key in data:
                first = self.lines[(*path, key)]
                key = reprlib.repr(key)
                raise RecipeError(f"{self.source}:{line}: the key {key} is given twice; first on line {first}")
            self.lines[(*path, key)] = line
            data[key] = self.value(value_node, (*path, key))
        return data

    def scalar(self, node: yaml.Node) -> Any:
        line = node.start_mark.line + 1
        try:
            value = self.loader.construct_object(node)
        except _PARSER_ERRORS as error:  # !!python/object, 2026-99-99 and the like
            raise RecipeError(f"{self.source}:{line}: cannot read the value {reprlib.repr(node.value)}") from error
        if isinstance(value, int) and abs(value) >= MAX_INTEGER:
            raise RecipeError(f"{self.source}:{line}: a number of {value.bit_length()} bits is too large")
        return value
