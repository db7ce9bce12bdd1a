"""What `debug` found as one self-contained HTML page."""

from __future__ import annotations

from llmquant.debugging.activations import OUTLIER, ActivationStatistics
from llmquant.debugging.report import DebugReport
from llmquant.debugging.twins import unit_name
from llmquant.eval.charts import HeatMap, heat_maps
from llmquant.eval.markup import Markup, breakable, element, join, table
from llmquant.eval.metrics.base import Panel
from llmquant.eval.metrics.layers import cells_of
from llmquant.eval.report import document
from llmquant.words import number, percent, shortened

_LEAST = 8
_HEAD = ("module", "range", "kurtosis", "sticking out", "dead", "clipped")
_INPUTS = (
    "What goes into each quantized module, in the baseline. Kurtosis is 3 of a normal distribution; sticking out: "
    f"channels that reach {OUTLIER:g} times the median channel's largest value, the largest first; dead: channels that "
    "are always zero; clipped: the share beyond the largest code of static 8-bit activations, where there are any."
)


def render_page(report: DebugReport) -> str:
    """Findings, costs, errors by block, and the edit."""
    header = element(
        "header",
        element("p", "llmquant debug", class_="eyebrow"),
        element("h1", f"{report.name} against {report.baseline}"),
        element("ul", element("li", report.sentence()), class_="verdicts"),
    )
    panels = [
        Panel("What was found", _findings(report)),
        _costs(report),
        *_errors(report),
        *_activations(report),
        *_edit(report),
        Panel("How it was measured", element("p", f"{report.how()}.", class_="note")),
    ]
    return document(f"{report.name}: where it hurts", header, panels)


def _findings(report: DebugReport) -> Markup:
    items = [
        element(
            "li", element("b", f"{each.severity}: ", breakable(shortened(each.where, 3))),
            f": {each.what}; {each.advice}.", class_="over" if each.severity == "fault" else None,
        )
        for each in report.findings
    ]  # fmt: skip
    return element("ul", *items, class_="verdicts") if items else element("p", "Nothing stands out.")


def _costs(report: DebugReport) -> Panel:
    note = (
        f"KL of the whole model {number(report.budget.kl.value)}: {report.budget.note}. Alone: of the baseline with "
        "only this quantized; gain: by how much the quantized model's falls with this at 16 bits, of it: as "
        "a share, +bits: per weight of the checkpoint."
    )
    head = ("unit", "scheme", "alone", "gain", "of it", "+bits")
    return Panel("What each costs", table(head, report.cost_rows(), named=True), note)


def _errors(report: DebugReport) -> list[Panel]:
    layers = [each for each in report.comparison.layers if each.own.sqnr is not None]
    noise = {each.name: 10 ** (-(each.own.sqnr or 0.0) / 10) for each in layers}
    maps = heat_maps([HeatMap(report.name, cells_of(noise))], "Noise over signal")
    note = "Of each module's outputs, given what the baseline gives its own module."
    return [Panel("Errors by block", maps, note)] if maps else []


def _activations(report: DebugReport) -> list[Panel]:
    """Inputs of the quantized modules: those with odd channels, or else the heaviest tails."""
    together: dict[tuple[int, ActivationStatistics], list[str]] = {}
    for each in report.comparison.layers:
        together.setdefault((each.block, each.activations), []).append(each.name)
    inputs = sorted(
        ((seen, unit_name(names)) for (_, seen), names in together.items()), key=lambda one: -one[0].kurtosis
    )
    if not inputs:
        return []
    odd = [each for each in inputs if each[0].outliers or each[0].dead or each[0].clipped]
    which = "Channels stick out, are dead or clipped in:" if odd else "No channel stands out. The heaviest tails:"
    kurtosis = {each.name: each.activations.kurtosis for each in report.comparison.layers}
    maps = heat_maps([HeatMap(report.name, cells_of(kurtosis))], "Kurtosis")
    rows = table(_HEAD, [_row(name, seen) for seen, name in odd or inputs[:_LEAST]], named=True)
    return [Panel("Activations", join(maps or "", element("p", which, class_="note"), rows), _INPUTS)]


def _row(name: str, inputs: ActivationStatistics) -> tuple[str, ...]:
    span = f"{number(inputs.smallest)} to {number(inputs.largest)}"
    outliers = ", ".join(map(str, inputs.outliers)) or "–"
    clipped = "–" if inputs.clipped is None else percent(inputs.clipped, 3)
    return name, span, number(inputs.kurtosis), outliers, str(inputs.dead), clipped


def _edit(report: DebugReport) -> list[Panel]:
    if report.edit is None:
        return []
    rules = join(element("p", f"{report.sentence()}."), element("pre", element("code", report.edit.rules)))
    return [Panel("A recipe edit", rules, "Behind the last of the recipe's rules.")]
