"""How models look in every chart: colours of both themes, shapes, names.

A chart is drawn in the light colours; in the page each becomes a CSS variable, so one drawing serves both themes.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmquant.eval.markup import Markup, element
from llmquant.words import printable

# Light and dark. Text (ink, soft, good, bad) has a contrast of 4.5 on page, card and wash, what is drawn one of 3; the
# seven colours of models also differ in lightness, and each goes with a shape, so none has to be told by hue alone.
PALETTE = {
    "page": ("#fbfbfa", "#131416"), "card": ("#ffffff", "#1b1d20"), "wash": ("#f2f3f4", "#24272b"),
    "ink": ("#17181a", "#ebecee"), "soft": ("#5a5e64", "#a3a8af"), "line": ("#e3e4e6", "#34373c"),
    "accent": ("#2459a9", "#74a9f0"), "good": ("#166a3a", "#6fd09a"), "bad": ("#b3261e", "#ff938a"),
    "good-wash": ("#e3f4ea", "#17321f"), "bad-wash": ("#fbe7e5", "#3d1a18"), "mark": ("#ffe8a3", "#6b5310"),
    "k0": ("#1f5fae", "#6aa7f0"), "k1": ("#c2560a", "#f0954f"), "k2": ("#2a9d6f", "#3ecfb0"),
    "k3": ("#6b1f5c", "#b05fc9"), "k4": ("#6d5a00", "#d8c05a"), "k5": ("#3f96c9", "#a9def7"),
    "k6": ("#6a6f76", "#9aa0a8"),
}  # fmt: skip
COLOURS = 7
SHAPES = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖", "*": "★"}


def hue(name: str) -> str:
    """A colour of the palette by its name."""
    return PALETTE[name][0]


def colour_of(place: int) -> str:
    """The colour of the model at a place."""
    return hue(f"k{place % COLOURS}")


def shape_of(place: int) -> str:
    """Its shape; colour and shape together come again after 56 models."""
    return list(SHAPES)[place % len(SHAPES)]


def dash_of(place: int) -> str:
    """Its kind of line."""
    return ("-", "--", ":", "-.")[place // COLOURS % 4]


def palette_css() -> Markup:
    """The palette as CSS variables, the dark one where the reader wants it; never in print."""
    light, dark = (" ".join(f"--{name}: {both[theme]};" for name, both in PALETTE.items()) for theme in (0, 1))
    return Markup(f":root {{ {light} }}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n")


def key(names: Sequence[str]) -> Markup:
    """Which shape and colour is which model."""
    return legend([(SHAPES[shape_of(place)], name) for place, name in enumerate(names)])


def legend(entries: Sequence[tuple[str, str]]) -> Markup:
    """Shapes in the colours of their places, each with its name."""
    lines = (
        element("li", element("span", shape, class_=f"shape k{place % COLOURS}", aria_hidden="true"), name)
        for place, (shape, name) in enumerate(entries)
    )
    return element("ul", *lines, class_="legend")


def short(names: Sequence[str], length: int) -> list[str]:
    """Names in at most `length` characters, without what all begin with, then without their middle; still different."""
    names = [printable(name) for name in names]
    if max(map(len, names), default=0) <= length:
        return names
    same = min(len(_common(names)), *(len(name) - 1 for name in names)) if len(names) > 1 else 0
    cut = ["…" + name[same:] if same > 3 else name for name in names]
    half = length // 2
    cut = [name if len(name) <= length else f"{name[: length - half - 1]}…{name[-half:]}" for name in cut]
    return [f"{place} {name}" if cut.count(name) > 1 else name for place, name in enumerate(cut, 1)]


def _common(names: Sequence[str]) -> str:
    low, high = min(names), max(names)
    return next((low[:place] for place, letter in enumerate(low) if letter != high[place]), low)
