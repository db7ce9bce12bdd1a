"""The page: verdict, table, charts, worst tokens, recipe, protocol. No script, no network; everything is inline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.resources import files

from llmquant.eval.lines import kernels_line, number, percent, verdict_line
from llmquant.eval.report.anatomy import anatomy_chart
from llmquant.eval.report.charts import kl_histogram_chart, tradeoff_chart
from llmquant.eval.report.heatmap import loss_heatmap
from llmquant.eval.report.markup import Markup, element, join
from llmquant.eval.report.overview import overview_table
from llmquant.eval.report.protocol import protocol_notes
from llmquant.eval.report.worst import worst_table
from llmquant.eval.result import EvalReport
from llmquant.eval.table import check_comparable


def render_page(reports: Sequence[EvalReport]) -> str:
    """One HTML page from evaluations against the same baseline on the same windows, in the order given.

    Raises:
        DataError: if the reports are not comparable.
    """
    check_comparable(reports)
    first = reports[0]
    style = Markup(files("llmquant.eval.report").joinpath("page.css").read_text(encoding="utf-8"))
    title = f"{first.baseline.name}: {', '.join(report.name for report in reports)}"
    sections = [
        _section("What was lost, what was gained", overview_table(reports)),
        _section("Loss against size", tradeoff_chart(reports), "Lower left is better. Bars are 95 % intervals."),
        _section("Loss by token", _distributions(reports), _DISTRIBUTION_NOTE),
        _section("Where the bytes are", anatomy_chart(reports)),
        _section(
            "Loss by layer", _heatmaps(reports), "Relative error of each layer's output (or weight), as quantized."
        ),
        _section("Where it hurts most", _worst(reports), "Tokens of highest KL; the token of the text is marked."),
        _section("Recipes and kernels", _recipes(reports)),
        _section("How it was measured", protocol_notes(first)),
    ]
    body = element("main", _header(reports), *(section for section in sections if section))
    head = join(
        Markup('<meta charset="utf-8">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup('<meta name="color-scheme" content="light dark">'),
        element("title", title),
        element("style", style),
    )
    page = element("html", element("head", head), element("body", body), lang="en")
    return f"<!doctype html>\n{page}\n"


_DISTRIBUTION_NOTE = (
    "Share of tokens by KL(baseline‖quantized), log axis. Most of the mean comes from tokens on which the baseline "
    "itself is undecided; the small table splits them by the baseline's highest probability (“sure”)."
)


def _section(title: str, content: Markup | None, note: str | None = None) -> Markup | None:
    if content is None:
        return None
    return element("section", element("h2", title), element("p", note, class_="note") if note else "", content)


def _header(reports: Sequence[EvalReport]) -> Markup:
    first = reports[0]
    lines = [
        element(
            "li",
            element("b", report.name),
            f": {verdict_line(report)}.",
            class_=None if report.budget_passed else "over",
        )
        for report in reports
    ]
    return element(
        "header",
        element("p", "llmquant evaluation", class_="eyebrow"),
        element("h1", first.baseline.name),
        element(
            "p",
            f"{number(first.baseline.parameters / 1e6)} M weights in {first.baseline.dtype}, against:",
            class_="note",
        ),
        element("ul", *lines, class_="verdicts"),
    )


def _distributions(reports: Sequence[EvalReport]) -> Markup:
    return element("div", *(_distribution(report) for report in reports), class_="tiles")


def _distribution(report: EvalReport) -> Markup:
    kl, comparison = report.comparison.kl, report.comparison
    chart = kl_histogram_chart(comparison.kl_histogram, kl.median, kl.p99, report.name)
    places = (("median", kl.median), ("90 %", kl.p90), ("99 %", kl.p99), ("99.9 %", kl.p999), ("max", kl.max))
    facts = " · ".join(f"{name} {number(value)}" for name, value in places)
    shift, flips = comparison.probability_shift, comparison.flips
    more = (
        f"Greedy token right → wrong {flips.right_to_wrong}, wrong → right {flips.wrong_to_right}; "
        f"change of the text's probability {100 * shift.mean:+.2f} points, rms {100 * shift.rms:.2f}."
    )
    return element(
        "figure",
        element("figcaption", report.name),
        chart,
        element("p", facts, class_="note"),
        _buckets(report),
        element("p", more, class_="note"),
    )


def _buckets(report: EvalReport) -> Markup:
    buckets = report.comparison.confidence_buckets
    tokens = report.comparison.tokens
    head = [element("th", f"{100 * bucket.low:.0f}–{100 * bucket.high:.0f}", scope="col") for bucket in buckets]
    share = [element("td", percent(bucket.tokens / tokens, 0), class_="num") for bucket in buckets]
    kl = [element("td", number(bucket.kl, 2), class_="num") for bucket in buckets]
    rows = (("sure, %", head), ("tokens", share), ("KL", kl))
    return element(
        "table", *(element("tr", element("th", name, scope="row"), *row) for name, row in rows), class_="buckets"
    )


def _heatmaps(reports: Sequence[EvalReport]) -> Markup | None:
    return _each(reports, lambda report: loss_heatmap(report.layer_losses, report.name))


def _worst(reports: Sequence[EvalReport]) -> Markup | None:
    return _each(reports, lambda report: worst_table(report.worst_tokens))


def _recipes(reports: Sequence[EvalReport]) -> Markup | None:
    return _each(reports, _recipe)


def _recipe(report: EvalReport) -> Markup | None:
    kernels = kernels_line(report)
    parts = [
        element("p", f"Kernels: {kernels}.", class_="note") if kernels else "",
        element("pre", element("code", report.recipe_yaml)) if report.recipe_yaml else "",
    ]
    return join(*parts) if any(parts) else None


def _each(reports: Sequence[EvalReport], render: Callable[[EvalReport], Markup | None]) -> Markup | None:
    """A foldable part per report, the first one open; None if there is nothing at all."""
    parts = []
    for report in reports:
        content = render(report)
        if content:
            opened = None if parts else "open"
            parts.append(element("details", element("summary", report.name), content, open=opened))
    return join(*parts) if parts else None
