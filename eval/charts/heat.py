"""Heat maps in one scale, with one legend."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmquant.eval.charts.canvas import Chart, View
from llmquant.eval.charts.theme import hue
from llmquant.eval.markup import Markup, element, join
from llmquant.words import number, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STEPS = 20  # shades, from the faintest to the full colour


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Values by row and column, such as a kind of module and a block."""

    name: str
    cells: Mapping[tuple[str, int], float]


def heat_maps(maps: Sequence[HeatMap], what: str) -> Markup | None:
    """A map for each model, darker is more, on a log scale that all share; None where no value is above zero.

    Columns are numbers, such as blocks; a cell without value stays empty, one of zero is the faintest.
    """
    known = [value for each in maps for value in each.cells.values() if value > 0]
    if not known:
        return None
    low, high = math.log10(min(known)), math.log10(max(known))

    def step(value: float) -> int:
        share = 1.0 if high == low else (math.log10(value) - low) / (high - low) if value > 0 else 0.0
        return min(int(share * _STEPS), _STEPS - 1)

    tiles = [
        element("figure", element("figcaption", each.name), _map(each, what, step).svg(both=False))
        for each in maps
        if each.cells
    ]
    shades = (element("span", style=f"opacity:{_opacity(place):.2f}") for place in range(_STEPS))
    scale = (number(10**low), element("span", *shades, class_="shades"), number(10**high))
    legend = element(
        "p", f"{what}: ", element("span", *scale, class_="scale"), ", log scale, the same in all", class_="note"
    )
    return join(legend, element("div", *tiles, class_="tiles"))


def _opacity(step: int) -> float:
    return 0.08 + 0.92 * step / (_STEPS - 1)


def _map(heat: HeatMap, what: str, step: Callable[[float], int]) -> Chart:
    rows = list(dict.fromkeys(row for row, _ in heat.cells))
    columns = sorted({column for _, column in heat.cells})
    worst = max(heat.cells, key=heat.cells.__getitem__)
    alt = f"{what} of {heat.name}: highest {number(heat.cells[worst])}, {worst[0]} of block {worst[1]}"

    def draw(axes: Axes, _: View) -> None:
        from matplotlib.patches import PathPatch
        from matplotlib.path import Path

        shades: dict[int, list[Path]] = {}
        for (row, column), value in heat.cells.items():
            x, y = columns.index(column), rows.index(row)
            corners = [(x, y), (x + 0.92, y), (x + 0.92, y + 0.9), (x, y + 0.9), (x, y)]
            shades.setdefault(step(value), []).append(Path(corners, closed=True))
        for shade, paths in sorted(shades.items()):
            cells = Path.make_compound_path(*paths)  # one path for all cells of a shade keeps the page small
            axes.add_patch(PathPatch(cells, facecolor=hue("accent"), alpha=_opacity(shade), linewidth=0))
        axes.set_xlim(0, len(columns))
        axes.set_ylim(len(rows), 0)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_yticks([row + 0.45 for row in range(len(rows))], [printable(row) for row in rows])
        every = math.ceil(len(columns) / 12)
        axes.set_xticks(
            [place + 0.46 for place in range(0, len(columns), every)], [str(column) for column in columns[::every]]
        )
        axes.set_xlabel("block")

    height = 44 + 22 * len(rows)
    return Chart(alt, (height, height), draw)
