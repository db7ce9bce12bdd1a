"""How a model was trained: loss on held-out text, and how far codes and scales moved, as the training recorded it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmquant.eval.charts import Chart, Curve, curves, key
from llmquant.eval.markup import element, join, table
from llmquant.eval.metrics import base
from llmquant.eval.metrics.base import Panel
from llmquant.words import number

if TYPE_CHECKING:
    from llmquant.eval.pair import Pair
    from llmquant.eval.result import EvalReport

PLACE = 80
ALONE = True
_HEAD = ("model", "steps", "tokens", "loss before", "loss after", "best step", "ranges frozen from")


@dataclass(frozen=True)
class Section(base.Section):
    """The curves are (step, value); losses are those that were trained for, on text that was held out.

    Attributes:
        frozen_from: step from which ranges no longer moved; None if they always did, or never.
        drift: mean absolute logarithm of scales over those of the start.
        flipped: share of codes that differ from the start's.
    """

    steps: int
    tokens: int
    before: float
    after: float | None
    best_step: int
    frozen_from: int | None
    loss: tuple[tuple[int, float], ...]
    held_out: tuple[tuple[int, float], ...]
    drift: tuple[tuple[int, float], ...]
    flipped: tuple[tuple[int, float], ...]


def measure(pair: Pair, options: base.NoOptions) -> Section | None:
    """What llmquant.json says; None for a model that was not trained, or where it says something else."""
    made = pair.subject.made or {}
    training, qat = made.get("training"), made.get("recipe", {}).get("qat")
    if not isinstance(training, Mapping) or not isinstance(qat, Mapping):
        return None
    try:
        return _section(training, qat)
    except (KeyError, TypeError, ValueError):  # of another version, or damaged
        return None


def _section(training: Mapping[str, Any], qat: Mapping[str, Any]) -> Section:
    steps, log, after = int(training["steps"]), training["log"], training["loss_after"]
    share = float(qat.get("freeze_after", 1.0))
    before = float(training["loss_before"])

    def curve(name: str) -> tuple[tuple[int, float], ...]:
        found = ((int(entry["step"]), float(entry[name])) for entry in log if name in entry)
        return tuple((step, value) for step, value in found if math.isfinite(value))

    return Section(
        steps=steps,
        tokens=int(training["tokens"]),
        before=before,
        after=None if after is None else float(after),
        best_step=int(training["best_step"]),
        frozen_from=math.ceil(share * steps) if share < 1 else None,
        loss=curve("loss"),
        held_out=((0, before), *curve("eval_loss")),
        drift=curve("scale_drift"),
        flipped=curve("codes_flipped"),
    )


def panels(reports: Sequence[EvalReport]) -> list[Panel]:
    """Curves of all models that were trained, and a table of where they ended."""
    known = [(place, report.name, found) for place, report in enumerate(reports) if (found := report.get(Section))]
    if not known:
        return []
    charts = [
        _chart(known, "loss on held-out text", lambda section: section.held_out),
        _chart(known, "loss of the steps", lambda section: section.loss),
        _chart(known, "codes that flipped", lambda section: section.flipped, percent=True),
        _chart(known, "change of scales", lambda section: section.drift, percent=True),
    ]
    tiles = element("div", *(element("figure", chart.svg()) for chart in charts if chart), class_="tiles")
    rows = [
        [name, f"{each.steps:,}", f"{each.tokens:,}", number(each.before),
         "–" if each.after is None else number(each.after), f"{each.best_step:,}",
         "–" if each.frozen_from is None else f"step {each.frozen_from:,}"]
        for _, name, each in known
    ]  # fmt: skip
    parts = [tiles, table(_HEAD, rows, named=True)]
    if len(reports) > 1:
        parts.insert(0, key([report.name for report in reports]))
    return [Panel("Training", join(*parts), _NOTE)]


_NOTE = (
    "From the rounded model, at step 0, to the one that was best on held-out text, which is the one evaluated here. "
    "Losses are those that the recipe trains for. Codes that flipped, and the mean absolute logarithm of scales, are "
    "against the start."
)


def _chart(
    known: Sequence[tuple[int, str, Section]],
    title: str,
    curve: Callable[[Section], Sequence[tuple[int, float]]],
    *,
    percent: bool = False,
) -> Chart | None:
    lines = []
    for place, name, section in known:
        if points := curve(section):
            steps, values = zip(*points, strict=True)
            lines.append(Curve(name, place, steps, values))
    if not lines:
        return None
    ends = "; ".join(f"{line.name}: {number(line.y[0])} to {number(line.y[-1])}" for line in lines)
    return curves(lines, "step", title, f"{title.capitalize()} by step: {ends}", percent=percent)
