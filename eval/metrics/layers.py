"""Relative loss of each quantized layer: block by kind of module, darker is worse."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmquant.algorithms import rounding
from llmquant.eval.charts import HeatMap, heat_maps
from llmquant.eval.markup import Markup, element, join
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
    """Relative loss by module name, as the quantizing run recorded it.

    `of_weights` are the modules whose loss is that of the weight, not of the output on the calibration text; None where
    that is not known.
    """

    losses: dict[str, float]
    of_weights: tuple[str, ...] | None = None

    def by_kind(self) -> dict[str, dict[str, float]]:
        """The losses of outputs and of weights, which cannot be compared."""
        if self.of_weights is None:
            return {"outputs or weights": self.losses}
        found: dict[str, dict[str, float]] = {"outputs": {}, "weights": {}}
        weights = set(self.of_weights)
        for name, loss in self.losses.items():
            found["weights" if name in weights else "outputs"][name] = loss
        return found


def measure(pair: Pair, options: base.NoOptions) -> Section | None:
    """What llmquant.json says; None for another tool's checkpoint."""
    if (made := pair.subject.made) is None:
        return None
    layers = made["layers"]
    blind = {name for name in rounding.names() if not rounding.find(name).NEEDS}
    of_weights = [name for name, each in layers.items() if not made.get("calibration") or each.get("method") in blind]
    return Section({name: each["loss"] for name, each in layers.items()}, tuple(of_weights))


def panels(reports: Sequence[EvalReport]) -> list[Panel]:
    """Heat maps of the losses of outputs, and of weights, each kind in one scale; what is outside the blocks below."""
    parts: list[Markup] = []
    known = [(name, section.by_kind()) for name, section in Section.of(reports)]
    for kind in ("outputs", "weights", "outputs or weights"):
        losses = [(name, kinds[kind]) for name, kinds in known if kinds.get(kind)]
        if maps := heat_maps([HeatMap(name, cells_of(each)) for name, each in losses], f"Relative error of {kind}"):
            below = (f"{name}: {text}." for name, each in losses if (text := _outside(each)))
            parts += [maps, *(element("p", text, class_="note") for text in below)]
    return [Panel("Loss by layer", join(*parts), _NOTE)] if parts else []


_NOTE = (
    "As quantized: of a layer's outputs on the calibration text where its rounding saw that, else of its weights. The "
    "two cannot be compared."
)


def cells_of(losses: Mapping[str, float]) -> dict[tuple[str, int], float]:
    """By kind of module and block, from module names such as "model.layers.0.mlp.up_proj"; of experts the worst."""
    cells: dict[tuple[str, int], float] = {}
    for module, loss in losses.items():
        if match := _NAME.match(module):
            cell = (re.sub(r"\.\d+\b", ".*", match["kind"]), int(match["block"]))
            cells[cell] = max(loss, cells.get(cell, 0.0))
    return cells


def _outside(losses: Mapping[str, float]) -> str:
    return ", ".join(f"{module} {number(loss)}" for module, loss in losses.items() if not _NAME.match(module))
