"""What `debug` found as one self-contained HTML page."""

from __future__ import annotations

from llmquant.debugging.report import DebugReport
from llmquant.eval.charts import HeatMap, heat_maps
from llmquant.eval.markup import Markup, element, join, table
from llmquant.eval.metrics.base import Panel
from llmquant.eval.metrics.layers import cells_of
from llmquant.eval.report import document
from llmquant.words import number, shortened


def render_page(report: DebugReport) -> str:
    """Findings, costs, errors by block, and the edit."""
    header = element(
        "header",
        element("p", "llmquant debug", class_="eyebrow"),
        element("h1", f"{report.name} against {report.baseline}"),
        element("ul", element("li", report.sentence()), class_="verdicts"),
    )
    panels = [Panel("What was found", _findings(report)), _costs(report), *_errors(report), *_edit(report)]
    return document(f"{report.name}: where it hurts", header, panels)


def _findings(report: DebugReport) -> Markup:
    items = [
        element("li", element("b", f"{each.severity}: {shortened(each.where, 3)}"), f": {each.what}. {each.advice}.")
        for each in report.findings
    ]
    return element("ul", *items) if items else element("p", "Nothing stands out.")


def _costs(report: DebugReport) -> Panel:
    note = (
        f"KL of the whole model {number(report.budget.kl.value)}: {report.budget.note}. Alone: of the baseline with "
        "only this quantized; gain: by how much the quantized model's falls with this at 16 bits, of it: as "
        "a share, +bits: per weight of the checkpoint."
    )
    content = element(
        "div",
        table(("unit", "scheme", "alone", "gain", "of it", "+bits"), report.cost_rows(), "plain"),
        class_="scroll",
    )
    return Panel("What each costs", content, note)


def _errors(report: DebugReport) -> list[Panel]:
    layers = [each for each in report.comparison.layers if each.own.sqnr is not None]
    noise = {each.name: 10 ** (-(each.own.sqnr or 0.0) / 10) for each in layers}
    maps = heat_maps([HeatMap(report.name, cells_of(noise))], "Noise over signal")
    note = "Of each module's outputs, given what the baseline gives its own module."
    return [Panel("Errors by block", maps, note)] if maps else []


def _edit(report: DebugReport) -> list[Panel]:
    if report.edit is None:
        return []
    rules = join(element("p", f"{report.sentence()}."), element("pre", element("code", report.edit.rules)))
    return [Panel("A recipe edit", rules, "Behind the last of the recipe's rules.")]
