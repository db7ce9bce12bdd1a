"""Matplotlib's SVG as it can stand in a page: without names and references, which would be the same in every chart."""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree import ElementTree

from llmquant.eval.charts.theme import PALETTE
from llmquant.eval.markup import Markup, element

_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
_KEPT = (
    "fill", "stroke", "fill-opacity", "opacity", "stroke-width", "stroke-dasharray", "text-anchor", "font-size",
    "font-weight",
)  # fmt: skip
_VARIABLES = {light: f"var(--{name})" for name, (light, _) in PALETTE.items()}


def inlined(drawn: bytes, alt: str, class_: str) -> Markup:
    """The drawing as an element of a page, with its colours as CSS variables; `alt` is read aloud in its place."""
    root = ElementTree.fromstring(drawn)
    shapes = {f"#{each.get('id')}": each for each in root.iter(f"{_SVG}path")}
    parts = (part for child in root if child.tag == f"{_SVG}g" for part in _parts(child, shapes))
    return element("svg", *parts, role="img", aria_label=alt, viewBox=root.get("viewBox"), class_=class_)


def _parts(part: ElementTree.Element, shapes: dict[str, ElementTree.Element]) -> Iterator[Markup]:
    """What is drawn, without the groups around it."""
    style = _style(part.get("style", ""))
    match part.tag.removeprefix(_SVG):
        case "g":
            for child in part:
                yield from _parts(child, shapes)
        case "use":
            shape = shapes[part.get(f"{_XLINK}href", "")]
            place = f"translate({_short(part.get('x', '0'))} {_short(part.get('y', '0'))})"
            style = style or _style(shape.get("style", ""))
            yield element("path", d=_short(shape.get("d", "")), style=style, transform=place)
        case "path" if style != "fill:none":
            yield element("path", d=_short(part.get("d", "")), style=style or None)
        case "text":
            place = {name: _short(value) for name in ("x", "y", "transform") if (value := part.get(name))}
            if place.get("transform", "").startswith("rotate(-0 "):
                del place["transform"]
            yield element("text", "".join(part.itertext()), style=style or None, **place)


def _style(css: str) -> str:
    found = {}
    for name, _, value in (rule.partition(":") for rule in css.split(";")):
        if name.strip() == "font":  # one rule for all in matplotlib 3.10
            found["font-size"] = next(word for word in value.split() if word.endswith("px"))
        elif name.strip() in _KEPT:
            found[name.strip()] = _VARIABLES.get(value.strip(), value.strip())
    return ";".join(f"{name}:{value}" for name, value in found.items())


def _short(numbers: str) -> str:
    """Numbers with one decimal at most, on one line."""
    cut = re.sub(r"-?\d+\.\d+", lambda match: f"{float(match[0]):.1f}".removesuffix(".0"), numbers)
    return " ".join(cut.split())
