"""From a function that draws on matplotlib's axes to SVG in a page, or to a PNG file.

Text stays text, measured with DejaVu Sans, which is wider than most fonts that a browser takes in its place. A chart is
there twice, wide and narrow, and CSS shows the one that the page has room for.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmquant.eval.charts.svg import inlined
from llmquant.eval.charts.theme import hue
from llmquant.eval.markup import Markup, join
from llmquant.words import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDE, NARROW = 528, 342  # pixels, which are the points of the drawing
FONT = 12
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "llmquant", "text.parse_math": False, "path.simplify": False,
    "font.family": ["DejaVu Sans"], "font.size": FONT, "axes.labelsize": FONT, "xtick.labelsize": FONT - 1,
    "ytick.labelsize": FONT - 1, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "xtick.minor.size": 0, "ytick.minor.size": 0, "lines.linewidth": 1.8, "lines.markersize": 7,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class View:
    """For what a chart is drawn: a narrow page, and whether it stands alone, without the page's key."""

    narrow: bool
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart: what is read aloud in its place, its heights in pixels (wide, narrow), and what draws it.

    `draw` may give a function that adds what stands beside things that have their final place.
    """

    alt: str
    heights: tuple[int, int]
    draw: Callable[[Axes, View], Callable[[], None] | None]

    def svg(self, *, both: bool = True) -> Markup:
        """Both drawings, of which the page's style shows one, or the narrow one for all pages."""
        if not both:
            return self._svg(View(narrow=True), "any")
        return join(self._svg(View(narrow=False), "wide"), self._svg(View(narrow=True), "narrow"))

    def png(self, *, scale: float = 2) -> bytes:
        """The wide drawing as a file, in light colours, `scale` pixels for each of the page's."""
        return self._file(View(narrow=False, alone=True), format="png", dpi=72 * scale, facecolor=hue("card"))

    def _svg(self, view: View, class_: str) -> Markup:
        drawn = self._file(view, format="svg", transparent=True, metadata={"Date": None})
        return inlined(drawn, printable(self.alt), class_)

    def _file(self, view: View, **how: Any) -> bytes:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a browser has it
            return self._drawn(view, **how)

    def _drawn(self, view: View, **how: Any) -> bytes:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import NullLocator

        file = io.BytesIO()
        colours = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), hue("ink"))
        lines = dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), hue("soft"))
        with rc_context({**_SETTINGS, **colours, **lines, "grid.color": hue("line")}):
            size = (NARROW if view.narrow else WIDE, self.heights[view.narrow])
            figure: Figure = Figure(figsize=(size[0] / 72, size[1] / 72), dpi=72)
            FigureCanvasAgg(figure)
            axes = figure.subplots()
            after = self.draw(axes, view)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_minor_locator(NullLocator())
            _settle(axes)
            if after:
                after()
            figure.savefig(file, **how)
        return file.getvalue()


def _settle(axes: Axes) -> None:
    """Margins as wide as the texts beside the axes need."""
    pixels = axes.get_figure(root=True).bbox  # pyright: ignore[reportOptionalMemberAccess]
    needed, spot = axes.get_tightbbox(), axes.get_position()
    assert needed is not None
    left, bottom = spot.x0 + (3 - needed.x0) / pixels.width, spot.y0 + (3 - needed.y0) / pixels.height
    right, top = spot.x1 - (needed.x1 + 3) / pixels.width + 1, spot.y1 - (needed.y1 + 3) / pixels.height + 1
    axes.set_position((left, bottom, max(right - left, 0.1), max(top - bottom, 0.1)))
