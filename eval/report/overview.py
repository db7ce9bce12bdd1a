"""The table on top of the page: the baseline, then one row per quantized model."""

from __future__ import annotations

from collections.abc import Sequence

from llmquant.eval.lines import bytes_text, change, interval, number, percent, quartiles, speed_text, speedup
from llmquant.eval.report.markup import Markup, element
from llmquant.eval.result import BudgetVerdict, EvalReport, ModelSection, Speed, SpeedProtocol
from llmquant.eval.statistics import Estimate, Spread

_HEAD = (("model", None), ("size", "1"), ("bits/weight", "1"), ("perplexity", "2"), ("KL", "3"), ("top-1", "4"))
_SPEED_HEAD = (("prefill tok/s", "5"), ("decode tok/s", "5"))


def overview_table(reports: Sequence[EvalReport]) -> Markup:
    """Small print under each number is its interval, error or quartiles; superscripts lead to the footnotes."""
    timed = any(report.speed_protocol for report in reports)
    heads = [*_HEAD, *(_SPEED_HEAD if timed else ()), ("verdict", "6")]
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
    cells = [*_model_cells(section, None, ()), _cell("–"), _cell("–")]
    if timed:
        cells += _speed_cells(section.speed, None)
    return element("tr", element("th", section.name, scope="row"), *cells, element("td", "baseline"), class_="baseline")


def _row(report: EvalReport, timed: bool) -> Markup:
    comparison, kl = report.comparison, report.comparison.kl
    top1 = comparison.top1_agreement
    shares = "" if top1.low is None or top1.high is None else f"[{100 * top1.low:.1f}, {100 * top1.high:.1f}]"
    cells = [
        *_model_cells(report.quantized, report.size_ratio, _change_lines(comparison.perplexity_ratio)),
        _cell(number(kl.mean), f"± {number(kl.standard_error, 2)}" if kl.standard_error is not None else ""),
        _cell(percent(top1.value), shares),
    ]
    if timed:
        cells += _speed_cells(report.quantized.speed, report.speed_protocol)
    return element("tr", element("th", report.name, scope="row"), *cells, _verdict_cell(report))


def _speed_cells(speed: Speed | None, protocol: SpeedProtocol | None) -> list[Markup]:
    if speed is None:
        return [_cell("–"), _cell("–")]
    ratios = (None, None) if protocol is None else (protocol.prefill_speedup, protocol.decode_speedup)
    return [
        _cell(speed_text(each), quartiles(each), _ratio(ratio))
        for each, ratio in zip((speed.prefill, speed.decode), ratios, strict=True)
    ]


def _ratio(ratio: Spread | None) -> Markup | str:
    if ratio is None:
        return ""
    text, kind = speedup(ratio)
    sign, style = {"slower": ("▼ slower, ", "bad"), "faster": ("▲ ", "good"), "equal": ("", None)}[kind]
    return element(
        "span", f"{sign}{ratio.median:.2f}×", class_=style, title=f"ratio of each round, median and quartiles: {text}"
    )


def _verdict_cell(report: EvalReport) -> Markup:
    comparison = report.comparison
    mood = "good" if comparison.verdict in ("indistinguishable", "same perplexity", "better") else ""
    badges = [element("span", comparison.verdict, class_=f"badge {mood}")]
    if comparison.nonfinite:
        badges.append(element("span", f"{comparison.nonfinite} positions not finite", class_="badge bad"))
    return element("td", *badges, *(_budget_badge(each) for each in report.budget))


def _budget_badge(each: BudgetVerdict) -> Markup:
    name = {"kl": "KL", "perplexity_ratio": "ppl ratio", "bits_per_weight": "bits"}[each.name]
    sign, relation, mood = ("✓", "≤", "good") if each.passed else ("✗", ">", "bad")
    text = f"{sign} {name} {number(each.measured, 4)} {relation} {each.limit:g}"
    return element("span", text, "" if each.certain else " (within error)", class_=f"badge {mood}")
