"""One measure of several models against another: size and loss, speed and loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmquant.eval.charts.canvas import FONT, Chart, View
from llmquant.eval.charts.theme import colour_of, hue, shape_of, short
from llmquant.eval.statistics import Estimate
from llmquant.words import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import BboxBase

_SMALLEST = 1e-9  # a loss of exactly zero has no place on a log axis


@dataclass(frozen=True, slots=True)
class Mark:
    """A model: where it stands, `x` with quartiles where they are known, its place among all, and whether it wins."""

    name: str
    place: int
    x: Estimate
    y: Estimate
    wins: bool = False


def against(
    marks: Sequence[Mark],
    x: str,
    y: str,
    *,
    limits: Sequence[tuple[str, float]] = (),
    base: float | None = None,
) -> Chart:
    """`y` (log axis) against `x`, each with its interval; `x` and `y` name them.

    `limits` are named values of `y`, such as a budget; `base` is a value of `x` that is marked, such as the baseline's.
    """
    names = {False: short([each.name for each in marks], 24), True: short([each.name for each in marks], 18)}
    alt = f"{y} against {x}: " + "; ".join(
        f"{each.name} {number(each.x.value)}, {number(each.y.value)}{', the winner' * each.wins}" for each in marks
    )

    def draw(axes: Axes, view: View) -> Callable[[], None]:
        axes.set_yscale("log")
        for each in marks:
            _mark(axes, each)
        _frame(axes, marks, [limit for _, limit in limits])
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(axis="y")
        if base is not None and axes.get_xlim()[0] <= base <= axes.get_xlim()[1]:
            axes.axvline(base, color=hue("soft"), linewidth=1)
        return lambda: _name(axes, marks, names[view.narrow], _lines(axes, limits))

    return Chart(alt, (330, 320), draw)


def _mark(axes: Axes, each: Mark) -> None:
    low, high = _bounds(each.y)
    colour = colour_of(each.place)
    value = max(each.y.value, _SMALLEST)
    across = None
    if each.x.low is not None and each.x.high is not None:
        across = [[each.x.value - each.x.low], [each.x.high - each.x.value]]
    axes.errorbar(
        each.x.value, value, xerr=across, yerr=[[value - low], [high - value]], fmt=shape_of(each.place), color=colour,
        capsize=3, elinewidth=1.4, markeredgecolor=hue("card"), markersize=9,
    )  # fmt: skip
    if each.wins:
        axes.plot(each.x.value, value, "o", markersize=17, markerfacecolor="none", markeredgecolor=hue("good"))


def _bounds(estimate: Estimate) -> tuple[float, float]:
    """Of the interval, the mean where there is none; one of zero goes two decades below the mean."""
    value = max(estimate.value, _SMALLEST)
    low, high = (value if each is None else each for each in (estimate.low, estimate.high))
    return max(low, value / 100), max(high, value)


def _frame(axes: Axes, marks: Sequence[Mark], limits: Sequence[float]) -> None:
    """Limits of both axes with room for names, and ticks in plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    ends = [bound for each in marks for bound in _bounds(each.y)] + [limit for limit in limits if limit > 0]
    low, high = math.log10(min(ends)), math.log10(max(ends))
    room = max(0.12 * (high - low), 0.15)
    axes.set_ylim(10 ** (low - room), 10 ** (high + room))
    subs = (1.0,) if high - low > 2 else (1.0, 2.0, 5.0)
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    places = [bound for each in marks for bound in (each.x.low, each.x.value, each.x.high) if bound is not None]
    margin = max(0.14 * (max(places) - min(places)), 0.05 * max(places), 1e-9)
    axes.set_xlim(min(places) - margin, max(places) + 2 * margin)


def _lines(axes: Axes, limits: Sequence[tuple[str, float]]) -> list[BboxBase]:
    """Dashed lines with their names; what the names cover."""
    found = []
    for name, limit in limits:
        if limit <= 0:
            continue
        axes.axhline(limit, color=hue("soft"), linestyle="--", linewidth=1)
        text = axes.annotate(
            f"{name} {number(limit, 2)}", (1, limit), xycoords=("axes fraction", "data"), xytext=(0, 3),
            textcoords="offset points", ha="right", color=hue("soft"), size=FONT - 1,
        )  # fmt: skip
        found.append(text.get_window_extent())
    return found


def _name(axes: Axes, marks: Sequence[Mark], names: Sequence[str], taken: list[BboxBase]) -> None:
    """Each name right or left of its mark, or further up or down with a line to it: where it covers nothing."""
    from matplotlib.transforms import Bbox

    spots = axes.transData.transform([(each.x.value, max(each.y.value, _SMALLEST)) for each in marks])
    boxes = [
        Bbox.from_bounds(x, y, 0, 0).padded(9 if each.wins else 6) for each, (x, y) in zip(marks, spots, strict=True)
    ]
    for each, (_, y) in zip(marks, spots, strict=True):
        if each.x.low is not None and each.x.high is not None:  # no name may be struck out by an interval
            (left, _), (right, _) = axes.transData.transform([(each.x.low, 1.0), (each.x.high, 1.0)])
            taken = [*taken, Bbox.from_extents(left, y - 1, right, y + 1)]
    frame = axes.get_window_extent().padded(2)
    steps = [0, 11, -11, *(sign * 13 * place for place in range(2, 9) for sign in (1, -1))]
    tries = [(side, step) for step in steps for side in (1, -1)]  # nearest first
    for each, name, own in sorted(zip(marks, names, boxes, strict=True), key=lambda one: one[0].y.value):
        others = [box for box in boxes if box is not own] + taken
        spot = (each.x.value, max(each.y.value, _SMALLEST))
        for side, up in tries:
            text = axes.annotate(
                name, spot, xytext=((13 if each.wins else 10) * side, up), textcoords="offset points", va="center",
                ha="left" if side > 0 else "right", size=FONT - 0.5, weight="bold" if each.wins else "normal",
            )  # fmt: skip
            box = text.get_window_extent()
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in others):
                taken = [*taken, box]
                break
            text.remove()
        else:
            continue
        if abs(up) > 13:
            thin = {"arrowstyle": "-", "color": hue("soft"), "linewidth": 0.7, "shrinkA": 0, "shrinkB": 5}
            axes.annotate("", spot, xytext=(9 * side, up), textcoords="offset points", arrowprops=thin)
