"""The base of everything in a recipe file: unknown keys and wrong types are refused, values never change."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError


class Strict(BaseModel):
    """A mapping of a recipe file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def at_key(key: str, message: str) -> PydanticCustomError:
    """An error of a whole mapping that points to one of its keys."""
    return PydanticCustomError("at_key", "{message}", {"key": key, "message": message})
