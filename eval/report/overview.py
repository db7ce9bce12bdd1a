"""The table on top of the page: the baseline, then one row per quantized model."""

from __future__ import annotations

from collections.abc import Sequence

from llmquant.eval.lines import (
    SpeedLine,
    bytes_text,
    change,
    interval,
    number,
    percent,
    plus_minus,
    short_note,
    speed_comparisons,
    verdict_text,
)
from llmquant.eval.report.markup import Markup, element
from llmquant.eval.result import BudgetVerdict, EvalReport, ModelSection
from llmquant.eval.statistics import Estimate

_HEAD = (("model", None), ("size", "1"), ("bits/weight", "1"), ("perplexity", "2"), ("KL", "3"), ("top-1", "4"))
_SPEED_HEAD = (("prefill", "5"), ("decode", "5"))


def overview_table(reports: Sequence[EvalReport]) -> Markup:
    """Small print under each number is its interval, error or quartiles; superscripts lead to the footnotes."""
    timed = any(report.speed_protocol for report in reports)
    heads = [*_HEAD, *(_SPEED_HEAD if timed else ()), ("loss of perplexity", "6")]
    head = element("tr", *(_head(text, note) for text, note in heads))
    rows = [_baseline_row(reports[0], timed), *(_row(report, timed) for report in reports)]
    table = element("table", element("thead", head), element("tbody", *rows), class_="overview")
    return element("div", table, class_="scroll", role="region", aria_label="Overview", tabindex="0")


def _head(text: str, note: str | None) -> Markup:
    mark = element("sup", element("a", note, href=f"#note-{note}")) if note else ""
    return element("th", text, mark, scope="col")


def _cell(value: str, *small: str) -> Markup:
    return element("td", value, *(element("small", each) for each in small if each), class_="num")


def _model_cells(section: ModelSection, ratio: float | None, ratio_lines: Sequence[str]) -> list[Markup]:
    size = section.dtype if ratio is None else f"{number(ratio)}× smaller"
    memory = f"{bytes_text(section.memory.parameter_bytes)} in memory" if section.memory else ""
    at_work = ""
    if section.memory and section.memory.working_bytes is not None:
        at_work = f"+ {bytes_text(section.memory.working_bytes)} at work"
    return [
        _cell(bytes_text(section.checkpoint_bytes), size, memory, at_work),
        _cell(number(section.bits_per_weight)),
        _cell(number(section.perplexity.value, 4), interval(section.perplexity), *ratio_lines),
    ]


def _change_lines(ratio: Estimate) -> list[str]:
    """The change and its interval, a line each."""
    text, bracket, bounds = change(ratio).partition("[")
    return [text, bracket + bounds]


def _baseline_row(report: EvalReport, timed: bool) -> Markup:
    section = report.baseline
    cells = [*_model_cells(section, None, ()), _cell("–"), _cell("–"), *([_cell("1×"), _cell("1×")] if timed else [])]
    return element("tr", element("th", section.name, scope="row"), *cells, element("td", "baseline"), class_="baseline")


def _row(report: EvalReport, timed: bool) -> Markup:
    comparison, kl = report.comparison, report.comparison.kl
    top1 = comparison.top1_agreement
    shares = short_note(top1.note)
    if top1.low is not None and top1.high is not None:
        shares = f"[{100 * top1.low:.1f}, {100 * top1.high:.1f}]"
    cells = [
        *_model_cells(report.quantized, report.size_ratio, _change_lines(comparison.perplexity_ratio)),
        _cell(number(kl.mean), plus_minus(kl)),
        _cell(percent(top1.value), shares),
    ]
    if timed:
        cells += [_speed_cell(report, phase) for phase in ("prefill", "decode")]
    return element("tr", element("th", report.name, scope="row"), *cells, _verdict_cell(report))


def _speed_cell(report: EvalReport, phase: str) -> Markup:
    """Each ratio with the dense dtype, the speeds and the rounds that it comes from."""
    lines = [each for each in speed_comparisons(report) if each.phase == phase]
    if not lines:
        return _cell("–")
    return element("td", *(part for each in lines for part in _speed_lines(each)), class_="num")


def _speed_lines(each: SpeedLine) -> list[Markup]:
    sign, style = {"slower": ("▼ slower, ", "bad"), "faster": ("▲ ", "good"), "equal": ("", None)}[each.kind]
    ratio, _, spread_of = each.ratio.replace("x", "×", 1).partition(" ")
    return [
        element("div", element("span", f"{sign}{ratio}", class_=style), element("small", f"of {each.against}")),
        element("small", f"{spread_of + ', ' if spread_of else ''}{each.rounds}"),
        element("small", f"{each.speeds} tok/s"),
    ]


def _verdict_cell(report: EvalReport) -> Markup:
    comparison = report.comparison
    mood = "bad" if comparison.verdict in ("loss", "large loss") else ""  # and no colour that praises
    badges = [element("span", verdict_text(comparison), class_=f"badge {mood}")]
    if comparison.nonfinite:
        badges.append(element("span", f"{comparison.nonfinite} positions not finite", class_="badge bad"))
    return element("td", *badges, *(_budget_badge(each) for each in report.budget))


def _budget_badge(each: BudgetVerdict) -> Markup:
    name = {"kl": "KL", "perplexity_ratio": "ppl ratio", "bits_per_weight": "bits"}[each.name]
    sign, relation, mood = ("✓", "≤", "good") if each.passed else ("✗", ">", "bad")
    text = f"{sign} {name} {number(each.measured, 4)} {relation} {each.limit:g}"
    return element("span", text, "" if each.certain else " (within error)", class_=f"badge {mood}")
