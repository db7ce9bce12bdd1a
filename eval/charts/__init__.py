"""Charts of a report: SVG in the page's own colours, or PNG. Each function gives a `Chart`.

Matplotlib draws them. Tried against altair with vl-convert (static SVG as well): both draw sharply, in 20 kB and less
than a second, but matplotlib measures text, so that names can be placed where they cover nothing, its wheel has 10 MB
in place of 34, and most people have it.
"""

from __future__ import annotations

from llmquant.eval.charts.against import Mark, against
from llmquant.eval.charts.canvas import Chart
from llmquant.eval.charts.curves import Curve, curves
from llmquant.eval.charts.heat import HeatMap, heat_maps
from llmquant.eval.charts.rows import Bar, Dot, Flip, bars, dots, flips
from llmquant.eval.charts.theme import key, legend, palette_css

__all__ = [
    "Bar", "Chart", "Curve", "Dot", "Flip", "HeatMap", "Mark", "against", "bars", "curves", "dots", "flips",
    "heat_maps", "key", "legend", "palette_css",
]  # fmt: skip
