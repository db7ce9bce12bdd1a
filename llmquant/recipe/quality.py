"""Recipes by two words: what the weights become, and how much work goes into it, such as `int4-g128-balanced`.

The three qualities are files of `recipes/quality`, in which SCHEME stands for the scheme of the weights.
"""

from __future__ import annotations

from importlib.resources import files

from llmquant.spec import Scheme

QUALITIES = ("fast", "balanced", "high")
DEFAULT_QUALITY = "balanced"
EXAMPLE = "int4-g64-balanced"
SCHEMES = ("int4-g32", "int4-g128", "int4-g128-asym", "int3-g32", "int3-g128", "int2-g32")  # any other goes too
OF_BITS = {8: "int8", 4: "int4-g128", 3: "int3-g32", 2: "int2-g32"}
_SMALLER_GROUPS = (64, 32)


def recipe_name(bits: int, quality: str) -> str:
    """The recipe for one of `OF_BITS`: the fewer bits, the smaller the groups."""
    return f"{OF_BITS[bits]}-{quality}"


def quality_names() -> list[str]:
    """The recipes of this kind that are listed."""
    return [f"{scheme}-{quality}" for scheme in SCHEMES for quality in QUALITIES]


def quality_text(name: str) -> str | None:
    """The YAML text of `SCHEME-QUALITY`, comments included; None if `name` is nothing of that kind."""
    word, _, quality = name.rpartition("-")
    try:
        scheme = Scheme.parse(word)
    except ValueError:
        return None
    if quality not in QUALITIES or scheme.is_keep or scheme.activations:
        return None
    text = (files("llmquant.recipes") / "quality" / f"{quality}.yaml").read_text(encoding="utf-8")
    return text.replace("SCHEME", scheme.name).replace("FALLBACKS", f"[{', '.join(_fallbacks(scheme))}]")


def _fallbacks(scheme: Scheme) -> list[str]:
    """What a layer gets whose inputs the groups do not divide."""
    if scheme.group_size is None:
        return []
    return [*(f"g{size}" for size in _SMALLER_GROUPS if size < scheme.group_size), "channel"]
