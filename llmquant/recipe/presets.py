"""The recipes that ship with llmquant, as text: listing them loads neither torch nor the schema."""

from __future__ import annotations

from importlib.resources import files

import yaml

from llmquant.errors import RecipeError
from llmquant.recipe.quality import quality_names, quality_text
from llmquant.words import did_you_mean, listed, shown


def preset_names() -> list[str]:
    """Names of the recipes that ship with llmquant: its files, and schemes by the quality that is asked for."""
    return sorted([*file_names(), *quality_names()])


def file_names() -> list[str]:
    """Names of those that are a file each."""
    return sorted(entry.name[:-5] for entry in files("llmquant.recipes").iterdir() if entry.name.endswith(".yaml"))


def preset_text(name: str) -> str:
    """The YAML text of a shipped recipe, comments included.

    Raises:
        RecipeError: if there is none of this name; the message has the nearest ones.
    """
    if (composed := quality_text(name)) is not None:
        return composed
    if name not in file_names():
        hint = did_you_mean(name, preset_names()) or f"; presets are {listed(file_names())}"
        ways = (
            "a scheme such as int4-g64 is a recipe too, alone or as int4-g64-balanced, and a file is named with its "
            "ending, such as my.yaml"
        )
        raise RecipeError(f"unknown preset {shown(name)} ({ways}){hint}")
    return (files("llmquant.recipes") / f"{name}.yaml").read_text(encoding="utf-8")


def presets() -> dict[str, str]:
    """The recipes that ship with llmquant: names, and what each says about itself."""
    return {name: yaml.safe_load(preset_text(name)).get("description", "") for name in preset_names()}
