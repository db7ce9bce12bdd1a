"""A row for each model: dots with intervals, stacked bars, bars to both sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmquant.eval.charts.canvas import FONT, Chart, View
from llmquant.eval.charts.theme import COLOURS, colour_of, hue, shape_of, short
from llmquant.eval.statistics import Estimate
from llmquant.words import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SPREAD = 8  # from this ratio of largest to smallest on, an axis is logarithmic


@dataclass(frozen=True, slots=True)
class Dot:
    """A model's value, and its place among all models; None for the baseline."""

    name: str
    place: int | None
    value: Estimate


@dataclass(frozen=True, slots=True)
class Bar:
    """A model's parts, each with the place of its kind, and the sum in words."""

    name: str
    parts: Sequence[tuple[int, float]]
    text: str


@dataclass(frozen=True, slots=True)
class Flip:
    """A model's answers that turned wrong and right, of so many."""

    name: str
    lost: int
    won: int
    documents: int


def dots(rows: Sequence[Dot], title: str, *, base: float | None = None, text: str = "{}") -> Chart:
    """Values with their intervals, the first on top; `base` is marked through all rows, `text` adds a unit."""
    alt = f"{title}: " + "; ".join(f"{each.name} {text.format(number(each.value.value))}" for each in rows)

    def draw(axes: Axes, view: View) -> None:
        from matplotlib.ticker import FuncFormatter

        ends = [end for each in rows for end in (each.value.low, each.value.value, each.value.high) if end is not None]
        if min(ends) > 0 and max(ends) > _SPREAD * min(ends):
            axes.set_xscale("log")
        if base is not None:
            axes.axvline(base, color=hue("soft"), linewidth=1)
        for row, each in enumerate(rows):
            colour = hue("ink") if each.place is None else colour_of(each.place)
            value, across = each.value, None
            if value.low is not None and value.high is not None:
                across = [[max(value.value - value.low, 0)], [max(value.high - value.value, 0)]]
            shape = "|" if each.place is None else shape_of(each.place)
            axes.errorbar(value.value, row, xerr=across, fmt=shape, color=colour, capsize=3, elinewidth=1.4)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text.format(f"{value:g}")))
        axes.locator_params(axis="x", nbins=6) if axes.get_xscale() == "linear" else None
        axes.grid(axis="x")
        axes.set_xlabel(title)
        _rows(axes, [each.name for each in rows], view)

    return Chart(alt, _heights(len(rows)), draw)


def bars(rows: Sequence[Bar], title: str) -> Chart:
    """A bar for each row, of parts one after the other."""
    alt = f"{title}: " + "; ".join(f"{each.name} {each.text}" for each in rows)
    largest = max(sum(size for _, size in each.parts) for each in rows)

    def draw(axes: Axes, view: View) -> None:
        for row, each in enumerate(rows):
            begin = 0.0
            for place, size in each.parts:
                axes.barh(
                    row,
                    size,
                    0.4 if view.narrow else 0.55,
                    begin,
                    color=hue(f"k{place % COLOURS}"),
                    edgecolor=hue("card"),
                    linewidth=1,
                )
                begin += size
            axes.text(begin + 0.012 * largest, row, each.text, va="center", size=FONT - 1, color=hue("soft"))
        axes.set_xlim(0, 1.22 * largest)
        axes.xaxis.set_visible(False)
        axes.spines[["bottom", "left"]].set_visible(False)
        _rows(axes, [each.name for each in rows], view)

    return Chart(alt, _heights(len(rows), below=10), draw)


def flips(rows: Sequence[Flip], end: float) -> Chart:
    """Lost answers to the left, won ones to the right, as shares of all; `end` is the share at which the axis ends."""
    alt = "; ".join(f"{each.name}: {each.lost} of {each.documents} lost, {each.won} won" for each in rows)

    def draw(axes: Axes, view: View) -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        for row, each in enumerate(rows):
            for count, sign, colour in ((each.lost, -1, "bad"), (each.won, 1, "good")):
                size = sign * count / each.documents
                axes.barh(row, size, 0.4 if view.narrow else 0.55, color=hue(colour), linewidth=0)
                axes.annotate(
                    str(count), (size, row), xytext=(5 * sign, 0), textcoords="offset points", va="center",
                    ha="left" if sign > 0 else "right", size=FONT - 1,
                )  # fmt: skip
        axes.axvline(0, color=hue("soft"), linewidth=1)
        axes.set_xlim(-1.25 * end, 1.25 * end)  # with room for the counts
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * abs(value):g} %"))
        axes.set_xlabel("← lost, won →")
        _rows(axes, [each.name for each in rows], view)

    return Chart(alt, _heights(len(rows)), draw)


def _heights(rows: int, below: int = 56) -> tuple[int, int]:
    return below + 30 * rows, below + 42 * rows


def _rows(axes: Axes, names: Sequence[str], view: View) -> None:
    """Names beside the rows, above them where the page is narrow."""
    axes.set_ylim(len(names) - 0.45, -0.75 if view.narrow else -0.55)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    if not view.narrow:
        axes.set_yticks(range(len(names)), short(names, 26), size=FONT)
        return
    axes.set_yticks([])
    for row, name in enumerate(short(names, 44)):
        axes.annotate(
            name, (0, row), xycoords=("axes fraction", "data"), xytext=(0, 13), textcoords="offset points", size=FONT,
            bbox={"facecolor": hue("card"), "edgecolor": "none", "pad": 1},  # a line behind it does not strike it out
        )  # fmt: skip
