"""The page: verdict, table, the panels of every metric, recipe, protocol. No script, no network; all is inline."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from llmquant.eval.charts import key, palette_css
from llmquant.eval.markup import Markup, element, folded, join
from llmquant.eval.metrics import metrics
from llmquant.eval.metrics.base import Cell, Column, Panel
from llmquant.eval.metrics.speed import kernels_line
from llmquant.eval.report.tradeoff import loss_against_size, loss_against_speed
from llmquant.eval.result import BudgetVerdict, EvalReport
from llmquant.eval.table import check_comparable, columns_of
from llmquant.eval.verdict import verdict, winner
from llmquant.limits import limits
from llmquant.words import number


def render_page(reports: Sequence[EvalReport]) -> str:
    """One HTML page from evaluations against the same baseline on the same windows, in the order given.

    Raises:
        DataError: if the reports are not comparable.
    """
    check_comparable(reports)
    first = reports[0]
    names = ", ".join(report.name for report in reports)
    title = f"{first.against}: {names}" if first.against else names
    panels = [
        Panel("What was lost, what was gained", _overview(reports)),
        *_tradeoffs(reports),
        *(panel for metric in metrics() for panel in metric.panels(reports)),
    ]
    if recipes := folded([(report.name, _recipe(report)) for report in reports]):
        panels.append(Panel("Recipes and kernels", recipes))
    panels.append(Panel("How it was measured", _footnotes(reports)))
    return document(title, _header(reports), panels)


def document(title: str, header: Markup, panels: Sequence[Panel]) -> str:
    """A page of its own with the house's look."""
    style = join(palette_css(), Markup(files("llmquant.eval.report").joinpath("page.css").read_text(encoding="utf-8")))
    body = element("main", header, *map(_section, panels))
    head = join(
        Markup('<meta charset="utf-8">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup('<meta name="color-scheme" content="light dark">'),
        element("title", title),
        element("style", style),
    )
    page = element("html", element("head", head), element("body", body), lang="en")
    return f"<!doctype html>\n{page}\n"


def _tradeoffs(reports: Sequence[EvalReport]) -> list[Panel]:
    charts = [chart for chart in (loss_against_size(reports), loss_against_speed(reports)) if chart]
    if not charts:
        return []
    tiles = element("div", *(element("figure", chart.svg()) for chart in charts), class_="tiles")
    named = key([report.name for report in reports])
    note = "Lower is better; further left is smaller, further right is faster."
    note += " Ringed: the winner." if winner(reports) else ""
    return [Panel("Loss against size and speed", join(named, tiles), note)]


def _section(panel: Panel) -> Markup:
    note = element("p", panel.note, class_="note") if panel.note else ""
    return element("section", element("h2", panel.title), note, panel.content)


def _header(reports: Sequence[EvalReport]) -> Markup:
    first = reports[0]
    lines = [
        element("li", element("b", each.name), f": {each.sentence()}.", class_=None if each.budget_passed else "over")
        for each in reports
    ]
    about = f"{number((first.baseline or first.quantized).parameters / 1e6)} M weights"
    about += f" in {first.baseline.dtype}, against:" if first.baseline else ", without a baseline:"
    return element(
        "header",
        element("p", "llmquant evaluation", class_="eyebrow"),
        element("h1", first.against or ", ".join(each.name for each in reports)),
        element("p", said, class_="verdict") if (said := verdict(reports)) else "",
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


def _overview(reports: Sequence[EvalReport]) -> Markup:
    """The baseline, then one row per quantized model; superscripts lead to the footnotes."""
    columns = columns_of(reports)
    marks = {
        note: element("sup", element("a", str(place), href=f"#note-{place}"))
        for place, note in enumerate(_notes(reports), 1)
    }
    heads = (element("th", each.head, marks[each.note], scope="col") for each, _ in columns)
    head = element("tr", element("th", "model", scope="col"), *heads)
    against = reports[0].against
    before = [(each, each.baseline) for each, _ in columns]
    rows = [_row(against, before, class_="baseline")] if against else []
    for place, report in enumerate(reports):
        badges = [_budget_badge(each) for each in report.budget]
        rows.append(_row(report.name, [(column, cells[place]) for column, cells in columns], badges))
    return element("table", element("thead", head), element("tbody", *rows), class_="overview")


def _footnotes(reports: Sequence[EvalReport]) -> Markup:
    """Numbered notes, which the table's heads link to, what was not measured, then machine and versions."""
    notes = [element("li", text, id=f"note-{place}") for place, text in enumerate(_notes(reports), 1)]
    measured = {name for report in reports for name in report.sections}
    absent = [
        element("p", each.absent, class_="note") for each in metrics() if each.absent and each.name not in measured
    ]
    facts = {**reports[0].machine, **reports[0].versions}
    machine = [join(element("dt", name), element("dd", str(value))) for name, value in facts.items()]
    return join(element("ol", *notes, class_="notes"), *absent, element("dl", *machine))


def _notes(reports: Sequence[EvalReport]) -> list[str]:
    """Each note once, in the order of the columns."""
    return list(dict.fromkeys(column.note for column, _ in columns_of(reports)))


def _row(
    name: str, cells: Sequence[tuple[Column, Cell]], badges: Sequence[Markup] = (), *, class_: str | None = None
) -> Markup:
    """A model; what became of its budget stands in the last cell."""
    row = [_cell(column, cell, badges if place == len(cells) else ()) for place, (column, cell) in enumerate(cells, 1)]
    return element("tr", element("th", name, scope="row"), *row, class_=class_)


def _cell(column: Column, cell: Cell, badges: Sequence[Markup]) -> Markup:
    content = [cell.text, *(element("small", each) for each in (*cell.below, *cell.more) if each)]
    if cell.page is not None:
        content = [cell.page]
    inner = element("div", *content, *badges)
    return element("td", inner, class_=None if column.words else "num", data_label=column.head)


def _budget_badge(each: BudgetVerdict) -> Markup:
    sign, relation, mood = ("✓", "≤", "good") if each.passed else ("✗", ">", "bad")
    text = f"{sign} {limits()[each.name].label} {number(each.measured, 4)} {relation} {each.limit:g}"
    return element("span", text, "" if each.certain else " (within error)", class_=f"badge {mood}")
