"""The same module of many blocks by one name: "model.layers.{0..29}.mlp.down_proj"."""

from __future__ import annotations

from collections.abc import Sequence

from llmquant.models.inventory import ModuleInfo
from llmquant.recipe.naming import collective, template


def block_of(name: str) -> int | None:
    """The first number in a module's name, which is that of its block; None where there is none."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def kind_of(name: str) -> str:
    """The name with `{}` in place of its block."""
    return template(_info(name))


def collective_name(names: Sequence[str]) -> str:
    """One name for modules that differ in their block."""
    return collective([_info(name) for name in names])


def _info(name: str) -> ModuleInfo:
    return ModuleInfo(name, "linear", (), 0, block_of(name))
