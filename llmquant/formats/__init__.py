"""Formats, one module or folder each: the recipe word `gguf` means `llmquant.formats.gguf`; see `base.Format`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmquant.by_name import find_in, names_in

if TYPE_CHECKING:
    from llmquant.formats.base import Format

DEFAULT = "compressed-tensors"
_SHARED = ("safetensors_file",)


def names() -> list[str]:
    """Names of the formats, sorted."""
    return [name.replace("_", "-") for name in names_in(__name__, _SHARED)]


def find(name: str) -> Format:
    """The module of a format, such as "compressed-tensors".

    Raises:
        RecipeError: if there is none of this name.
    """
    return find_in(__name__, name.replace("-", "_"), "format", _SHARED)
