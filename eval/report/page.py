"""The page: verdict, table, the panels of every metric, recipe, protocol. No script, no network; all is inline."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from llmquant.eval.lines import verdict_line
from llmquant.eval.markup import Markup, element, folded, join
from llmquant.eval.metrics import metrics
from llmquant.eval.metrics.base import Panel
from llmquant.eval.metrics.speed import kernels_line
from llmquant.eval.report.overview import footnotes, overview_table
from llmquant.eval.result import EvalReport
from llmquant.eval.table import check_comparable
from llmquant.words import number


def render_page(reports: Sequence[EvalReport]) -> str:
    """One HTML page from evaluations against the same baseline on the same windows, in the order given.

    Raises:
        DataError: if the reports are not comparable.
    """
    check_comparable(reports)
    first = reports[0]
    style = Markup(files("llmquant.eval.report").joinpath("page.css").read_text(encoding="utf-8"))
    title = f"{first.baseline.name}: {', '.join(report.name for report in reports)}"
    panels = [
        Panel("What was lost, what was gained", overview_table(reports)),
        *(panel for metric in metrics() for panel in metric.panels(reports)),
    ]
    if recipes := folded([(report.name, _recipe(report)) for report in reports]):
        panels.append(Panel("Recipes and kernels", recipes))
    panels.append(Panel("How it was measured", footnotes(reports)))
    body = element("main", _header(reports), *map(_section, panels))
    head = join(
        Markup('<meta charset="utf-8">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup('<meta name="color-scheme" content="light dark">'),
        element("title", title),
        element("style", style),
    )
    page = element("html", element("head", head), element("body", body), lang="en")
    return f"<!doctype html>\n{page}\n"


def _section(panel: Panel) -> Markup:
    note = element("p", panel.note, class_="note") if panel.note else ""
    return element("section", element("h2", panel.title), note, panel.content)


def _header(reports: Sequence[EvalReport]) -> Markup:
    first = reports[0]
    lines = [
        element(
            "li", element("b", each.name), f": {verdict_line(each)}.", class_=None if each.budget_passed else "over"
        )
        for each in reports
    ]
    about = f"{number(first.baseline.parameters / 1e6)} M weights in {first.baseline.dtype}, against:"
    return element(
        "header",
        element("p", "llmquant evaluation", class_="eyebrow"),
        element("h1", first.baseline.name),
        element("p", about, class_="note"),
        element("ul", *lines, class_="verdicts"),
    )


def _recipe(report: EvalReport) -> Markup | None:
    kernels = kernels_line(report)
    parts = [
        element("p", f"Kernels: {kernels}.", class_="note") if kernels else "",
        element("pre", element("code", report.recipe_yaml)) if report.recipe_yaml else "",
    ]
    return join(*parts) if any(parts) else None
