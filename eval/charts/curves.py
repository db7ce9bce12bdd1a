"""Curves of several models laid over each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmquant.eval.charts.canvas import Chart, View
from llmquant.eval.charts.theme import colour_of, dash_of, shape_of, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True)
class Curve:
    """A model's curve, and its place among all models."""

    name: str
    place: int
    x: Sequence[float]
    y: Sequence[float]


def curves(
    lines: Sequence[Curve],
    x: str,
    y: str,
    alt: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    percent: bool = False,
    ticks: Sequence[tuple[float, str]] = (),
) -> Chart:
    """Each line with its colour, dashes and shape; `x` and `y` name the axes, `percent` is of `y`, `ticks` of `x`."""

    def draw(axes: Axes, view: View) -> None:
        from matplotlib.ticker import FuncFormatter, LogLocator

        axes.set_xscale("log" if log_x else "linear")
        axes.set_yscale("log" if log_y else "linear")
        for each, name in zip(lines, short([line.name for line in lines], 28), strict=True):
            # A label that begins with an underscore would be left out.
            often = max(1, len(each.x) // 6)
            axes.plot(
                each.x, each.y, color=colour_of(each.place), linestyle=dash_of(each.place), marker=shape_of(each.place),
                markersize=6, markevery=(each.place % often, often), label=f" {name}",
            )  # fmt: skip
        axes.grid()
        if ticks:
            axes.set_xticks([place for place, _ in ticks], [text for _, text in ticks])
        elif log_x:
            axes.xaxis.set_major_locator(LogLocator(numticks=5 if view.narrow else 9))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        if log_y or percent:
            scale, sign = (100, " %") if percent else (1, "")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{scale * value:g}{sign}"))
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        if view.alone:
            axes.legend(frameon=False, fontsize="small")

    return Chart(alt, (330, 300), draw)
