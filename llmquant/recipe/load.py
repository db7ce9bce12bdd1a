"""Recipes from presets, files and plain data; a mistake is named with its file, line, key and nearest right word."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from llmquant.by_name import is_file
from llmquant.errors import RecipeError
from llmquant.files import read_plain
from llmquant.recipe.presets import preset_names, preset_text
from llmquant.recipe.schema import VERSION, Recipe, recipe_to_dict
from llmquant.recipe.yaml_nodes import MAX_CHARACTERS, Document, RecipeDumper, parse_yaml
from llmquant.spec import Scheme
from llmquant.words import did_you_mean, listed, shown

_SUFFIXES = (".yaml", ".yml", ".json")
_METHODS = ("rounding", "transforms", "tuning", "calibration")  # and what they look at
_EXPECTED = {
    "string_type": "expected text",
    "tuple_type": "expected a list",
    "model_type": "expected a mapping of keys to values",
    "int_type": "expected a whole number",
    "float_type": "expected a number",
    "bool_type": "expected true or false",
    "string_too_short": "empty",
}


def load_recipe(source: str | Path | Mapping[str, Any] | Recipe) -> Recipe:
    """Read a recipe.

    `source` is the name of a preset; that of a scheme, such as "int4-g64", which all linear layers get; the path of a
    YAML or JSON file (a `str` is one if it holds a slash or ends in .yaml, .yml or .json); the content as a mapping; or
    a recipe, which is returned as it is.

    Raises:
        RecipeError: if there is no such recipe, or it is malformed; all mistakes are listed.
    """
    if isinstance(source, Recipe):
        return source
    if isinstance(source, Mapping):
        return _validate(Document(dict(source)), "recipe")
    if isinstance(source, str) and _is_scheme(source) and source not in preset_names():
        rules = [{"match": "linear", "scheme": source}]
        return _validate(Document({"version": VERSION, "name": source, "rules": rules}), source)
    if isinstance(source, str) and not _looks_like_path(source):
        return _named(_validate(parse_yaml(preset_text(source), f"preset {source}"), f"preset {source}"), source)
    if not isinstance(source, (str, Path)):
        raise RecipeError(f"a recipe is a preset name, a path, a mapping or a Recipe, not {type(source).__name__}")
    path = Path(source)
    document = parse_yaml(_read(path), str(path))
    _files_beside(document.data, path.parent)
    return _named(_validate(document, str(path)), path.stem)


def with_calibration(recipe: Recipe, dataset: str) -> Recipe:
    """The recipe with another calibration text, checked like a file's.

    Raises:
        RecipeError: if it calibrates on none, or there is no such text.
    """
    data = recipe_to_dict(recipe)
    if "calibration" not in data:
        raise RecipeError(f"recipe {recipe.name!r} uses no calibration text, so {dataset!r} would be ignored; drop it")
    return load_recipe({**data, "calibration": {**data["calibration"], "dataset": dataset}})


def recipe_of_result(recipe: Mapping[str, Any]) -> Recipe:
    """What the recipe in llmquant.json says of sizes: its schemes, rules and format, without its methods.

    It may be somebody else's: a method that is a file would be run to be checked, and others may not be here.

    Raises:
        RecipeError: if the rest is malformed.
    """
    left = {key: value for key, value in recipe.items() if key not in _METHODS}
    if isinstance(rules := left.get("rules"), list):
        left["rules"] = [_without_rounding(rule) if isinstance(rule, dict) else rule for rule in rules]
    return load_recipe(left)


def _without_rounding(rule: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in rule.items() if key != "rounding"}


def _files_beside(data: object, folder: Path) -> None:
    """Make paths of methods absolute, which a recipe file gives from its own folder."""
    if isinstance(data, dict):
        if isinstance(method := data.get("method"), str) and is_file(method):
            data["method"] = str((folder / method).resolve())
        data = list(data.values())
    for each in data if isinstance(data, list) else ():
        _files_beside(each, folder)


def dump_recipe(recipe: Recipe | Mapping[str, Any]) -> str:
    """The recipe as YAML text, defaults written out; reading it again gives an equal recipe.

    A mapping is what `recipe_to_dict` made: that of somebody else's result may name methods that are not here.
    """
    # Without allow_unicode: PyYAML writes a few line separators bare and then reads them as line breaks.
    data = recipe_to_dict(recipe) if isinstance(recipe, Recipe) else dict(recipe)
    return yaml.dump(data, Dumper=RecipeDumper, sort_keys=False, width=100)


def _is_scheme(source: str) -> bool:
    try:
        return not Scheme.parse(source).is_keep
    except ValueError:
        return False


def _looks_like_path(source: str) -> bool:
    return source.endswith(_SUFFIXES) or "/" in source or "\\" in source


def _read(path: Path) -> str:
    try:
        return read_plain(path, RecipeError, limit=4 * MAX_CHARACTERS).decode("utf-8")
    except RecipeError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise RecipeError(f"no recipe file {path}{did_you_mean(path.stem, preset_names())}") from error
        raise
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not a text file in UTF-8 (byte {error.start}); a recipe is YAML") from error


def _named(recipe: Recipe, name: str) -> Recipe:
    return recipe if "name" in recipe.model_fields_set else recipe.model_copy(update={"name": name})


def _validate(document: Document, source: str) -> Recipe:
    data = document.data
    if not isinstance(data, dict):
        raise RecipeError(f"{source}: expected keys such as `version: 1` and `rules:`, got {type(data).__name__}")
    version = data.get("version")
    if type(version) is not int or version != VERSION:
        got = "no version" if version is None else f"version {shown(version)}"
        where = _where(document, source, ("version",))
        raise RecipeError(f"{where}: {got}; this llmquant reads recipes with `version: {VERSION}`")
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        problems = [_problem(details, document, source) for details in error.errors()]
    raise RecipeError("\n".join(problems))


def _problem(details: ErrorDetails, document: Document, source: str) -> str:
    path, kind, context = details["loc"], details["type"], details.get("ctx", {})
    got = details["input"]
    if kind == "at_key":
        path, message = (*path, context["key"]), context["message"]
    elif kind == "extra_forbidden":
        known = list(_model_at(path[:-1]).model_fields)
        message = f"unknown key{did_you_mean(str(path[-1]), known) or f'; the keys here are {listed(known)}'}"
    elif kind == "value_error":
        message = str(context["error"])
    elif kind == "missing":
        message = "missing"
    elif kind in _EXPECTED:
        message = f"{_EXPECTED[kind]}, got {shown(got)}"
    else:
        message = f"{details['msg'].replace('Input should be', 'should be')}, got {shown(got)}"
    return f"{_where(document, source, path)}: {message}"


def _where(document: Document, source: str, path: tuple[str | int, ...]) -> str:
    line = document.line(path)
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    return f"{source}{f':{line}' if line else ''}: {key or 'recipe'}"


def _model_at(path: tuple[str | int, ...]) -> type[BaseModel]:
    model: type[BaseModel] = Recipe
    for key in path:
        if isinstance(key, str):  # an index stays with the model of the list
            annotation = model.model_fields[key].annotation
            inside = get_args(annotation) or (annotation,)  # of `Model | None`, `tuple[Model, ...]` and `Model`
            model = next(each for each in inside if isinstance(each, type) and issubclass(each, BaseModel))
    return model
