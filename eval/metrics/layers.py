"""Relative loss of each quantized layer: block by kind of module, darker is worse."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmquant.eval.charts import HeatMap, heat_maps
from llmquant.eval.markup import element, join
from llmquant.eval.metrics import base
from llmquant.eval.metrics.base import Panel
from llmquant.words import number

if TYPE_CHECKING:
    from llmquant.eval.pair import Pair
    from llmquant.eval.result import EvalReport

PLACE = 70
ALONE = True
_NAME = re.compile(r"\D*\.(?P<block>\d+)\.(?P<kind>.+)$")


@dataclass(frozen=True)
class Section(base.Section):
    """Relative loss by module name, as the quantizing run recorded it."""

    losses: dict[str, float]


def measure(pair: Pair, options: base.NoOptions) -> Section | None:
    """What llmquant.json says; None for another tool's checkpoint."""
    made = pair.subject.made
    return None if made is None else Section({name: layer["loss"] for name, layer in made["layers"].items()})


def panels(reports: Sequence[EvalReport]) -> list[Panel]:
    """A heat map for each report, in one scale; what lies outside the blocks stands below."""
    known = Section.of(reports)
    maps = heat_maps([HeatMap(name, cells_of(section.losses)) for name, section in known], "Relative loss")
    if maps is None:
        return []
    lines = [element("p", f"{name}: {text}.", class_="note") for name, section in known if (text := _outside(section))]
    return [
        Panel("Loss by layer", join(maps, *lines), "Relative error of each layer's output (or weight), as quantized.")
    ]


def cells_of(losses: Mapping[str, float]) -> dict[tuple[str, int], float]:
    """By kind of module and block, from module names such as "model.layers.0.mlp.up_proj"; of experts the worst."""
    cells: dict[tuple[str, int], float] = {}
    for module, loss in losses.items():
        if match := _NAME.match(module):
            cell = (re.sub(r"\.\d+\b", ".*", match["kind"]), int(match["block"]))
            cells[cell] = max(loss, cells.get(cell, 0.0))
    return cells


def _outside(section: Section) -> str:
    return ", ".join(f"{module} {number(loss)}" for module, loss in section.losses.items() if not _NAME.match(module))
