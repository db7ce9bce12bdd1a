"""Formats, one module or folder each: the recipe word `gguf` means `llmquant.formats.gguf`; see `base.Format`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmquant.by_name import ByName, is_file
from llmquant.errors import RecipeError
from llmquant.words import listed

if TYPE_CHECKING:
    from llmquant.formats.base import Format

DEFAULT = "compressed-tensors"
_ALL: ByName[Format] = ByName(__name__, "format", others=("safetensors_file",), needs=("NAME", "open", "writer"))


def names() -> list[str]:
    """Names of the formats, sorted."""
    return [name.replace("_", "-") for name in _ALL.names()]


def find(name: str) -> Format:
    """The module of a format, such as "compressed-tensors".

    Raises:
        RecipeError: if there is none of this name; a file is none, for the name may come from somebody else's folder.
    """
    if is_file(name):
        raise RecipeError(f"{name!r} is a file, not a format. There are: {listed(names())}")
    return _ALL.find(name.replace("-", "_"))
