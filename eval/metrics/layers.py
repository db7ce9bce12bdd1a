"""Relative loss of each quantized layer: block by projection, darker is worse (log scale)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmquant.eval.markup import Markup, element, join, svg
from llmquant.eval.metrics import base
from llmquant.eval.metrics.base import Panel
from llmquant.words import number

if TYPE_CHECKING:
    from llmquant.eval.pair import Pair
    from llmquant.eval.result import EvalReport

PLACE = 70
ALONE = True
_LEFT, _TOP, _ROW = 170, 8, 26
_NAME = re.compile(r"(?:.*\.)?(?P<block>\d+)\.(?P<projection>\D+)$")


@dataclass(frozen=True)
class Section(base.Section):
    """Relative loss by module name, as the quantizing run recorded it."""

    losses: dict[str, float]


def measure(pair: Pair, options: base.NoOptions) -> Section | None:
    """What llmquant.json says; None for another tool's checkpoint."""
    made = pair.subject.made
    return None if made is None else Section({name: layer["loss"] for name, layer in made["layers"].items()})


def panels(reports: Sequence[EvalReport]) -> list[Panel]:
    """A heat map for each report."""
    parts = [(name, loss_heatmap(section.losses, name)) for name, section in Section.of(reports)]
    return Panel.folded("Loss by layer", parts, "Relative error of each layer's output (or weight), as quantized.")


def loss_heatmap(losses: Mapping[str, float], name: str) -> Markup | None:
    """A cell per layer of the model `name`, from relative losses by module name such as "model.layers.0.mlp.up_proj".

    Modules outside the blocks are listed below. None without losses.
    """
    if not losses:
        return None
    cells = {module: match for module in losses if (match := _NAME.match(module))}
    blocks = sorted({int(match["block"]) for match in cells.values()})
    projections = list(dict.fromkeys(match["projection"] for match in cells.values()))
    positive = [loss for loss in losses.values() if loss > 0]
    low, high = (math.log10(min(positive)), math.log10(max(positive))) if positive else (0.0, 0.0)
    column = min(44.0, 780 / max(len(blocks), 1))
    parts = [
        element("text", projection, class_="tick", x=float(_LEFT - 10), y=_TOP + row * _ROW + 17.0, text_anchor="end")
        for row, projection in enumerate(projections)
    ]
    every = max(1, math.ceil(24 / column))
    bottom = _TOP + len(projections) * _ROW
    for place, block in enumerate(blocks):
        if place % every == 0:
            x = _LEFT + (place + 0.5) * column
            parts.append(element("text", str(block), class_="tick", x=x, y=bottom + 16.0, text_anchor="middle"))
    for module, match in cells.items():
        x = _LEFT + blocks.index(int(match["block"])) * column
        y = _TOP + projections.index(match["projection"]) * _ROW
        parts.append(_cell(x, y, column, module, losses[module], low, high))
    width = int(_LEFT + len(blocks) * column + 10)
    drawing = svg(
        max(width, 560), bottom + 24, f"Relative loss of each layer of {name}, by block and projection", *parts
    )
    return join(element("div", drawing, class_="heat", style=f"max-width:{max(width, 560)}px"), _notes(losses, cells))


def _cell(x: float, y: float, column: float, module: str, loss: float, low: float, high: float) -> Markup:
    share = 1.0 if high == low else (math.log10(loss) - low) / (high - low) if loss > 0 else 0.0
    tip = element("title", f"{module}: {number(loss)}")
    size = {"width": column - 2, "height": _ROW - 2.0, "rx": 2}
    return element("rect", tip, class_="cell", x=x, y=float(y), fill_opacity=f"{0.08 + 0.92 * share:.3f}", **size)


def _notes(losses: Mapping[str, float], cells: Mapping[str, object]) -> Markup:
    best, worst = min(losses, key=losses.__getitem__), max(losses, key=losses.__getitem__)
    text = f"From {number(losses[best])} ({best}) to {number(losses[worst])} ({worst}), log scale."
    outside = [f"{module} {number(loss)}" for module, loss in losses.items() if module not in cells]
    return element("p", text + (f" Outside the blocks: {', '.join(outside)}." if outside else ""), class_="note")
