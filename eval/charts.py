"""KL against bits per weight, and the distribution of KL over tokens, as inline SVG."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from llmquant.eval.markup import Markup, element, join, svg
from llmquant.eval.statistics import Estimate
from llmquant.words import number

_WIDTH, _HEIGHT = 1040, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 18, 46
_SMALLEST = 1e-9  # a KL of exactly zero has no place on a log axis


@dataclass(frozen=True, slots=True)
class Point:
    """One model in the chart: its size and its mean KL."""

    name: str
    bits: float
    kl: Estimate


def tradeoff_chart(points: Sequence[Point], noise_floor: float | None = None) -> Markup | None:
    """Mean KL (log axis, 95 % interval) against bits per weight; None without points."""
    if not points:
        return None
    lows = [_on_log_axis(each.kl.low, each.kl.value) for each in points]
    highs = [_on_log_axis(each.kl.high, each.kl.value) for each in points]
    bottom, top = math.floor(math.log10(min(lows)) - 0.1), math.ceil(math.log10(max(highs)) + 0.1)
    bits_of = [each.bits for each in points]
    margin = max(0.8, 0.2 * (max(bits_of) - min(bits_of)))  # so that names have room on either side
    left, right = max(0.0, min(bits_of) - margin), max(bits_of) + margin

    def x(bits: float) -> float:
        return _LEFT + (bits - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT)

    def y(kl: float) -> float:
        share = (math.log10(max(kl, 10.0**bottom)) - bottom) / (top - bottom)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        _horizontal(y(10.0**power), f"1e{power}" if power < -3 else f"{10.0**power:g}")
        for power in range(bottom, top + 1)
    ]
    parts += [_vertical(x(tick), f"{tick:g}") for tick in _ticks(left, right)]
    parts.append(_axis_titles("bits per weight (all weights)", "mean KL, nats"))
    if noise_floor and noise_floor >= 10.0**bottom:
        parts.append(_floor(y(noise_floor), noise_floor))
    taken = [(x(each.bits) - 6, x(each.bits) + 6, y(each.kl.value)) for each in points]
    for each, low, high in zip(points, lows, highs, strict=True):
        parts.append(_point(x(each.bits), y(each.kl.value), y(low), y(high), each))
        parts.append(_label(x(each.bits), y(each.kl.value), each.name, taken))
    title = "Mean KL against bits per weight: " + "; ".join(
        f"{each.name} {number(each.bits)} bits, KL {number(each.kl.value)}" for each in points
    )
    return svg(_WIDTH, _HEIGHT, title, *parts)


def _on_log_axis(bound: float | None, mean: float) -> float:
    """A bound of the interval, the mean where there is none; one of zero goes two decades below the mean."""
    return max(mean if bound is None else bound, mean / 100, _SMALLEST)


def _ticks(low: float, high: float) -> list[float]:
    step = next(step for step in (0.25, 0.5, 1, 2, 4, 8) if (high - low) / step <= 9)
    return [place * step for place in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _line(class_: str, x1: float, x2: float, y1: float, y2: float) -> Markup:
    return element("line", class_=class_, x1=float(x1), x2=float(x2), y1=float(y1), y2=float(y2))


def _text(content: str, x: float, y: float, anchor: str = "middle", class_: str = "tick") -> Markup:
    return element("text", content, class_=class_, x=float(x), y=float(y), text_anchor=anchor)


def _horizontal(y: float, label: str) -> Markup:
    return join(_line("grid", _LEFT, _WIDTH - _RIGHT, y, y), _text(label, _LEFT - 8, y + 4, "end"))


def _vertical(x: float, label: str) -> Markup:
    bottom = _HEIGHT - _BOTTOM
    return join(_line("axis", x, x, bottom, bottom + 4), _text(label, x, bottom + 18))


def _axis_titles(below: str, beside: str) -> Markup:
    turned = f"translate(14 {(_TOP + _HEIGHT - _BOTTOM) / 2:.0f}) rotate(-90)"
    upright = element("text", beside, class_="tick", text_anchor="middle", transform=turned)
    return join(_text(below, (_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8), upright)


def _floor(y: float, value: float) -> Markup:
    text = f"noise floor (rounding of activations), {number(value, 2)}"
    return join(_line("floor", _LEFT, _WIDTH - _RIGHT, y, y), _text(text, _WIDTH - _RIGHT, y - 6, "end"))


def _point(x: float, y: float, low: float, high: float, point: Point) -> Markup:
    kl, circle = point.kl, element("circle", class_="point", cx=x, cy=y, r=5.5)
    if kl.low is None or kl.high is None:
        return element("g", element("title", f"{point.name}: KL {number(kl.value)}; {kl.note}"), circle)
    tip = f"{point.name}: KL {number(kl.value)}, 95 % interval {number(kl.low)} to {number(kl.high)}"
    bars = [(x, x, low, high), (x - 4, x + 4, low, low), (x - 4, x + 4, high, high)]
    return element("g", element("title", tip), *(_line("error", *bar) for bar in bars), circle)


def _label(x: float, y: float, name: str, taken: list[tuple[float, float, float]]) -> Markup:
    """The name right or left of its point, further down while it would cover another name or point."""
    width = 7.2 * len(name)
    begins = {1: x + 12, -1: x - 12 - width}
    right = begins[1] + width <= _WIDTH - 4
    sides = [side for side, fits in ((1, right), (-1, begins[-1] >= _LEFT or not right)) if fits]

    def is_free(begin: float, place: float) -> bool:
        return not any(abs(place - other) < 14 and begin < end and begin + width > start for start, end, other in taken)

    side, place = next(
        (side, place) for place in itertools.count(y, 14) for side in sides if is_free(begins[side], place)
    )
    taken.append((begins[side], begins[side] + width, place))
    return _text(name, x + 12 * side, place + 4, "start" if side == 1 else "end", "label")


def kl_histogram_chart(
    counts: Sequence[int], powers: tuple[float, float], median: float, p99: float, name: str
) -> Markup:
    """How per-token KL is distributed: bars over log10, with marks at the median and at 99 %.

    `counts` are of tokens in equal bins of log10(KL), between `powers`; `name` is the model's.
    """
    first, last = powers
    width, height, left, bottom = 480, 140, 8, 24
    top = max(counts) or 1
    step = (width - 2 * left) / len(counts)
    room = height - bottom - 22
    bars = [
        element(
            "rect", class_="bar", x=left + place * step + 0.5, width=step - 1, y=height - bottom - size, height=size
        )
        for place, size in ((place, room * count / top) for place, count in enumerate(counts))
        if size > 0
    ]

    def x(value: float) -> float:
        power = min(max(math.log10(max(value, 1e-300)), first), last)
        return left + (power - first) / (last - first) * (width - 2 * left)

    marks = [_mark(x(median), height - bottom, "median", -1), _mark(x(p99), height - bottom, "99 %", 1)]
    ticks = [
        _text("1" if power == 0 else f"1e{power}", x(10.0**power), height - 7)
        for power in range(math.ceil(first), math.floor(last) + 1, 2)
        if first < power < last
    ]
    base = _line("axis", left, width - left, height - bottom + 0.5, height - bottom + 0.5)
    title = f"Distribution of per-token KL of {name}: median {number(median)}, 99 % {number(p99)}"
    return svg(width, height, title, *bars, base, *marks, *ticks)


def _mark(x: float, bottom: float, text: str, side: int) -> Markup:
    return join(_line("mark", x, x, 6, bottom), _text(text, x + 4 * side, 14, "start" if side == 1 else "end"))
