"""What comes out of a chart: SVG that fits into a page, and a PNG."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from llmquant.eval.charts import Chart, Curve, Dot, Mark, against, curves, dots
from llmquant.eval.charts.canvas import NARROW, WIDE
from llmquant.eval.charts.theme import PALETTE
from llmquant.eval.statistics import Estimate

NASTY = ["$x^2$", "<b>&", "\x1b[2J", "\ud800", "日本語", "a\nb", ""]


def chart_of(names: list[str]) -> Chart:
    """Points with these names."""
    return against(
        [Mark(n, k, Estimate(4.0 + k), Estimate(0.1 / (k + 1), 0.05 / (k + 1), 1.0)) for k, n in enumerate(names)],
        "x",
        "y",
    )


def test_svg_is_a_part_of_a_page() -> None:
    """Two drawings; variables in place of colours; no names and no references, which would be twice in a page."""
    markup = chart_of(["a", "b"]).svg()
    drawings = ElementTree.fromstring(f"<page>{markup}</page>")
    sizes = {each.get("class"): (each.get("viewBox") or "").split()[2] for each in drawings}
    assert sizes == {"wide": str(WIDE), "narrow": str(NARROW)}
    assert {each.get("role") for each in drawings} == {"img"}
    assert {each.get("aria-label") for each in drawings} == {"y against x: a 4.00, 0.100; b 5.00, 0.0500"}
    assert not re.search(r"#|url\(|\sid=|href|<style|<metadata|xmlns", markup)
    names = set(re.findall(r"var\(--([\w-]+)\)", markup))
    assert {"k0", "k1", "card", "soft", "line", "ink"} >= names >= {"k0", "k1", "card", "line"}
    sizes = re.findall(r"font-size:([\d.]+)px", markup)
    assert min(map(float, sizes)) >= 11
    assert len(sizes) == markup.count("<text")


@pytest.mark.parametrize("name", NASTY)
def test_names_from_outside(name: str) -> None:
    for chart in (
        chart_of([name, "b"]),
        dots([Dot(name, 0, Estimate(2.0))], "t"),
        curves([Curve(name, 0, [1, 2], [1, 2])], "x", "y", name),
    ):
        ElementTree.fromstring(f"<page>{chart.svg()}</page>")
        assert chart.png(scale=1).startswith(b"\x89PNG")


def test_all_text_lies_within_the_drawing() -> None:
    """Row names of any length take their room from the axes, not from the page."""
    names = ["x" * 60, "a-very-long-name-of-a-checkpoint-int4", "b"]
    charts = [dots([Dot(n, k, Estimate(1.0 + k, 0.9 + k, 1.1 + k)) for k, n in enumerate(names)], "t"), chart_of(names)]
    for chart in charts:
        for drawing in ElementTree.fromstring(f"<page>{chart.svg()}</page>"):
            width, height = map(float, (drawing.get("viewBox") or "").split()[2:])
            for text in drawing.iter("text"):
                style, content = text.get("style") or "", text.text or ""
                size = float(style.partition("font-size:")[2].partition("px")[0])
                if "rotate" in (text.get("transform") or ""):
                    continue
                x, y, wide = float(text.get("x") or 0), float(text.get("y") or 0), 0.5 * size * len(content)
                begin = x - {"end": wide, "middle": wide / 2}.get(
                    style.partition("text-anchor:")[2].partition(";")[0], 0
                )
                assert begin >= -1, content
                assert begin + wide <= width + 1, content
                assert 0 <= y <= height, content


def test_png_has_the_light_colours() -> None:
    image = pytest.importorskip("PIL.Image")
    import io

    chart = chart_of(["a", "b"])
    drawn = image.open(io.BytesIO(chart.png(scale=2))).convert("RGB")
    assert drawn.size == (2 * WIDE, 2 * chart.heights[0])
    colours = {"#{:02x}{:02x}{:02x}".format(*colour) for _, colour in drawn.getcolors(1 << 20)}
    assert {PALETTE["card"][0], PALETTE["k0"][0], PALETTE["k1"][0]} <= colours
