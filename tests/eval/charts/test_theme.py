"""Colours can be told apart and read in both themes; names stay different when they are cut."""

from __future__ import annotations

from itertools import combinations

import pytest

from llmquant.eval.charts.theme import COLOURS, PALETTE, SHAPES, colour_of, dash_of, key, palette_css, shape_of, short


def linear(colour: str) -> list[float]:
    """Red, green and blue without gamma."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]


def contrast(one: str, other: str) -> float:
    """As WCAG 2 defines it."""
    lights = sorted(
        sum(w * part for w, part in zip((0.2126, 0.7152, 0.0722), linear(each), strict=True)) for each in (one, other)
    )
    return (lights[1] + 0.05) / (lights[0] + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_contrast(theme: int) -> None:
    """AA: 4.5 for text on what it stands on, 3 for what is drawn."""
    of = {name: both[theme] for name, both in PALETTE.items()}
    for ground in ("page", "card", "wash"):
        for text in ("ink", "soft", "accent", "good", "bad"):
            assert contrast(of[text], of[ground]) >= 4.5, (text, ground)
    assert contrast(of["good"], of["good-wash"]) >= 4.5
    assert contrast(of["bad"], of["bad-wash"]) >= 4.5
    assert contrast(of["ink"], of["mark"]) >= 4.5
    for place in range(COLOURS):
        assert contrast(of[f"k{place}"], of["card"]) >= 3, place


# What red-blind and green-blind eyes see of linear light (Vienot, Brettel and Mollon, 1999).
BLIND = {
    "red": ((0.11238, 0.88762, 0.0), (0.11238, 0.88762, 0.0), (0.00401, -0.00401, 1.0)),
    "green": ((0.29275, 0.70725, 0.0), (0.29275, 0.70725, 0.0), (-0.02234, 0.02234, 1.0)),
}


@pytest.mark.parametrize("kind", BLIND)
@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_the_first_colours_differ_for_the_colour_blind(kind: str, theme: int) -> None:
    """The first four models, of which most pages have no more; beyond, shapes and dashes tell."""
    seen = {}
    for place in range(4):
        light = linear(PALETTE[f"k{place}"][theme])
        seen[place] = [
            max(sum(w * part for w, part in zip(row, light, strict=True)), 0) ** (1 / 2.2) for row in BLIND[kind]
        ]
    for one, other in combinations(seen, 2):
        assert sum((a - b) ** 2 for a, b in zip(seen[one], seen[other], strict=True)) ** 0.5 > 0.2, (one, other)


def test_each_model_has_a_look_of_its_own() -> None:
    looks = {(colour_of(place), shape_of(place)) for place in range(COLOURS * len(SHAPES))}
    assert len(looks) == COLOURS * len(SHAPES)
    lines = {(colour_of(place), dash_of(place)) for place in range(4 * COLOURS)}
    assert len(lines) == 4 * COLOURS
    assert key(["a", "<b>"]).count("●") == 1
    assert "&lt;b&gt;" in key(["a", "<b>"])


def test_dark_is_for_screens() -> None:
    css = palette_css()
    assert css.count(f"--ink: {PALETTE['ink'][1]};") == 1
    assert "@media screen and (prefers-color-scheme: dark)" in css


def test_short_names() -> None:
    assert short(["int4-g32", "int8"], 20) == ["int4-g32", "int8"]
    long = ["smollm2-135m-instruct-int4-g64-gptq", "smollm2-135m-instruct-int4-g64", "smollm2-135m-instruct-w8a8"]
    assert short(long, 18) == ["…int4-g64-gptq", "…int4-g64", "…w8a8"]
    alike = [f"{'a' * 20}{letter}{'z' * 20}" for letter in "xy"]
    cut = short([*alike, "other"], 10)
    assert len(set(cut)) == 3
    assert all(len(name) <= 12 for name in cut)
    assert len(set(short(["same", "same"], 2))) == 2
    assert short(["\x1b[2J\ud800"], 40) == ["\\x1b[2J\\ud800"]
    assert short([], 5) == []
