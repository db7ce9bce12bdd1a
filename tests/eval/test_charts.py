"""Points, rows, curves and heat maps show what they were given."""

from __future__ import annotations

import re
from itertools import combinations
from typing import Any
from xml.etree import ElementTree

import pytest

from llmquant.eval.charts import (
    Bar,
    Chart,
    Curve,
    Dot,
    Flip,
    HeatMap,
    Mark,
    against,
    bars,
    curves,
    dots,
    flips,
    heat_maps,
)  # fmt: skip
from llmquant.eval.statistics import Estimate

NARROW = 1


def texts(chart: Chart, which: int = 0) -> list[tuple[str, float, float, str]]:
    """Text, x, y and anchor of the wide or narrow drawing."""
    drawing = list(ElementTree.fromstring(f"<page>{chart.svg()}</page>"))[which]
    found = []
    for each in drawing.iter("text"):
        anchor = re.search(r"text-anchor:(\w+)", each.get("style") or "")
        found.append(
            (each.text or "", float(each.get("x") or 0), float(each.get("y") or 0), anchor[1] if anchor else "start")
        )
    return found


def near(name: str, place: int, bits: float, kl: float) -> Mark:
    """A mark with a short interval."""
    return Mark(name, place, Estimate(bits), Estimate(kl, kl * 0.98, kl * 1.02))


@pytest.mark.parametrize("which", [0, NARROW])
@pytest.mark.parametrize("order", [1, -1])
def test_names_do_not_cover_each_other(order: int, which: int) -> None:
    """Results of two sizes as in the demo, and some on the same spot."""
    results = [
        ("int4-g32", 6.15, 0.0386), ("int4-g32-gptq", 6.15, 0.0165), ("int4-g128", 5.83, 0.0592),
        ("int4-g128-gptq", 5.83, 0.0227), ("int8", 9.19, 0.00029), *[(f"same{place}", 4.0, 0.1) for place in range(4)],
    ]  # fmt: skip
    names = {name for name, *_ in results}
    chart = against([near(name, k, *rest) for k, (name, *rest) in enumerate(results[::order])], "bits", "KL")
    shown = [each for each in texts(chart, which) if each[0] in names]
    assert {name for name, *_ in shown} == names
    boxes = []
    for name, x, y, anchor in shown:
        begin = x - 6 * len(name) * (anchor == "end")
        boxes.append((begin, begin + 6 * len(name), y))
    for one, other in combinations(boxes, 2):
        apart = abs(one[2] - other[2]) >= 9 or one[1] <= other[0] + 1 or other[1] <= one[0] + 1
        assert apart, (one, other)


def test_a_loss_of_zero_and_a_damaged_model_have_a_place() -> None:
    marks = [
        Mark("same", 0, Estimate(16.0), Estimate(0.0, 0.0, 0.0)),
        Mark("broken", 1, Estimate(2.0), Estimate(8.0)),
        Mark("good", 2, Estimate(4.0, 3.9, 4.2), Estimate(0.01, 0.0, 0.02)),
    ]
    chart = against(marks, "bits", "KL", limits=[("budget", 0.03), ("noise floor", 0.0)], base=16.0)
    shown = [text for text, *_ in texts(chart)]
    assert {"same", "broken", "good", "budget 0.030"} <= set(shown)
    assert "broken 2.00, 8.00" in chart.alt


def test_dots_have_a_row_each() -> None:
    rows = [
        Dot("base", None, Estimate(10.0, 9.0, 11.0)),
        Dot("one", 0, Estimate(12.0)),
        Dot("two", 1, Estimate(11.0, 10.0, 12.0)),
    ]
    chart = dots(rows, "perplexity", base=10.0)
    assert chart.alt == "perplexity: base 10.0; one 12.0; two 11.0"
    places = {text: y for text, _, y, _ in texts(chart)}
    assert places["base"] < places["one"] < places["two"] < places["perplexity"]
    narrow = {text: x for text, x, _, _ in texts(chart, NARROW)}
    assert max(narrow[name] for name in ("base", "one", "two")) < 30  # above its row, not beside it


def test_a_wide_range_is_logarithmic() -> None:
    def ticks(largest: float) -> list[float]:
        chart = dots([Dot("a", 0, Estimate(10.0)), Dot("b", 1, Estimate(largest))], "t")
        return [float(text) for text, *_ in texts(chart) if re.fullmatch(r"[\d.e+]+", text)]

    assert max(ticks(12.0)) < 20
    even, wide = ticks(12.0), ticks(50_000.0)
    assert even[1] - even[0] == pytest.approx(even[2] - even[1])
    assert wide[1] / wide[0] == pytest.approx(wide[2] / wide[1])


def test_bars_are_as_long_as_their_parts() -> None:
    chart = bars([Bar("a", [(0, 100.0), (1, 50.0)], "150 B"), Bar("b", [(0, 25.0)], "25 B")], "bytes")
    drawing = next(iter(ElementTree.fromstring(f"<page>{chart.svg()}</page>")))
    lengths: dict[str, list[float]] = {"k0": [], "k1": []}
    for path in drawing.iter("path"):
        if name := re.search(r"fill:var\(--(k\d)\)", path.get("style") or ""):
            xs = [float(x) for x in re.findall(r"[ML] ([\d.]+) ", path.get("d") or "")]
            lengths[name[1]].append(max(xs) - min(xs))
    assert lengths["k0"][0] == pytest.approx(2 * lengths["k1"][0], abs=0.3)
    assert lengths["k0"][0] == pytest.approx(4 * lengths["k0"][1], abs=0.5)
    assert {"150 B", "25 B", "a", "b"} <= {text for text, *_ in texts(chart)}


def test_flips_go_to_both_sides_in_one_scale() -> None:
    """A bar of the same share is as long in another chart that ends at the same share."""

    def lengths(chart: Chart) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {"bad": [], "good": []}
        for path in ElementTree.fromstring(f"<page>{chart.svg(both=False)}</page>").iter("path"):
            if name := re.search(r"fill:var\(--(bad|good)\)", path.get("style") or ""):
                xs = [float(x) for x in re.findall(r"[ML] ([\d.]+) ", path.get("d") or "")]
                found[name[1]].append(max(xs) - min(xs))
        return found

    first = flips([Flip("a", 40, 10, 100), Flip("b", 0, 20, 100)], 0.4)
    second = flips([Flip("c", 20, 5, 50)], 0.4)
    one, two = lengths(first), lengths(second)
    assert one["bad"][0] == pytest.approx(4 * one["good"][0], rel=0.03)
    assert one["good"][1] == pytest.approx(2 * one["good"][0], rel=0.03)
    assert two["bad"][0] == pytest.approx(one["bad"][0], rel=0.01)
    assert first.alt == "a: 40 of 100 lost, 10 won; b: 0 of 100 lost, 20 won"
    assert {"40", "10", "0", "20", "a", "b", "0 %", "50 %"} <= {text for text, *_ in texts(first)}


def test_the_winner_is_ringed() -> None:
    marks = [near("small", 0, 4.0, 0.02), near("large", 1, 8.0, 0.01)]
    plain, marked = (
        against([Mark(one.name, 0, one.x, one.y, wins), other], "bits", "KL")
        for wins in (False, True)
        for one, other in [marks]
    )
    ring = 'style="fill-opacity:0;stroke:var(--good)'
    assert (plain.svg().count(ring), marked.svg().count(ring)) == (0, 2)
    assert marked.alt.endswith("small 4.00, 0.0200, the winner; large 8.00, 0.0100")


def test_curves_and_their_axes() -> None:
    how: dict[str, Any] = {"log_x": True, "log_y": True, "percent": True}
    chart = curves([Curve("a", 0, [1e-6, 1e-3, 1.0], [1.0, 0.1, 0.001])], "KL", "share", "what is read", **how)
    assert chart.alt == "what is read"
    shown = [text for text, *_ in texts(chart)]
    assert {"KL", "share", "100 %", "10 %", "1 %"} <= set(shown)
    named = curves([Curve("a", 0, [0, 1], [1.0, 2.0])], "x", "y", "", ticks=[(0, "few"), (1, "many")])
    assert {"few", "many"} <= {text for text, *_ in texts(named)}


def test_heat_maps_share_a_scale() -> None:
    """A cell of the same value has the same shade in both, though one map's own range is narrow."""
    first = HeatMap("first", {("q_proj", 0): 1e-4, ("q_proj", 1): 1e-2})
    second = HeatMap("<second>", {("q_proj", 0): 1e-2, ("up_proj", 79): 0.0})
    markup = heat_maps([first, second], "Relative loss")
    assert markup is not None
    assert "<figcaption>&lt;second&gt;</figcaption>" in markup
    assert {"0.000100", "0.0100"} <= set(re.findall(r"[\d.]+", markup))
    styles = [re.findall(r'style="(fill:var\(--accent\)[^"]*)"', part) for part in markup.split("</figure>")[:2]]
    assert len(styles[0]) == 2
    assert sorted(styles[0]) == sorted(styles[1])
    assert heat_maps([HeatMap("none", {("q", 0): 0.0})], "x") is None
    assert heat_maps([], "x") is None


def test_a_heat_map_of_many_blocks_stays_small() -> None:
    cells = {(kind, block): 1e-3 * (block + 1) for block in range(80) for kind in ("q", "k", "v", "o", "g", "u", "d")}
    markup = heat_maps([HeatMap("m", cells)], "x")
    assert markup is not None
    corners = sum(
        path.count(" z") + path.count(" Z") for path in re.findall(r'd="([^"]*)" style="fill:var\(--accent', markup)
    )
    assert corners == len(cells)
    assert len(markup) < 60_000
