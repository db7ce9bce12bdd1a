"""The table on top of the page: the baseline, then one row per quantized model."""

from __future__ import annotations

from collections.abc import Sequence

from llmquant.eval.lines import bytes_text, change, interval, number, percent, quartiles, speed_text, speedup
from llmquant.eval.report.markup import Markup, element, join
from llmquant.eval.result import EvalReport, ModelSection, Speed, SpeedProtocol
from llmquant.eval.statistics import Spread

_HEAD = (("model", None), ("size", "1"), ("bits / weight", "1"), ("perplexity", "2"), ("KL", "3"), ("top-1", "4"))
_SPEED_HEAD = (("prefill tok/s", "5"), ("decode tok/s", "5"))
_MEMORY_HEAD = ("in memory", "6")


def overview_table(reports: Sequence[EvalReport]) -> Markup:
    """Small print under each number is its interval, error or quartiles; superscripts lead to the footnotes."""
    timed = any(report.speed_protocol for report in reports)
    heads = [*_HEAD, *(_SPEED_HEAD if timed else ()), _MEMORY_HEAD, ("verdict", "7")]
    head = element("tr", *(_head(text, note) for text, note in heads))
    rows = [_baseline_row(reports[0], timed), *(_row(report, timed) for report in reports)]
    table = element("table", element("thead", head), element("tbody", *rows), class_="overview")
    return element("div", table, class_="scroll", role="region", aria_label="Overview", tabindex="0")


def _head(text: str, note: str | None) -> Markup:
    mark = element("sup", element("a", note, href=f"#note-{note}")) if note else ""
    return element("th", text, mark, scope="col")


def _cell(value: str, small: str | Markup = "") -> Markup:
    return element("td", value, element("small", small) if small else "", class_="num")


def _model_cells(section: ModelSection, smaller: float | None, ratio: str) -> list[Markup]:
    size = f"{number(smaller)}× smaller" if smaller is not None else section.dtype
    perplexity = section.perplexity
    return [
        _cell(bytes_text(section.checkpoint_bytes), size),
        _cell(number(section.bits_per_weight)),
        _cell(number(perplexity.value, 4), join(interval(perplexity), element("br") if ratio else "", ratio)),
    ]


def _baseline_row(report: EvalReport, timed: bool) -> Markup:
    section = report.baseline
    cells = [*_model_cells(section, None, ""), _cell("–"), _cell("–")]
    if timed:
        cells += _speed_cells(section.speed, None)
    cells += [_memory_cell(section), element("td", "baseline")]
    return element("tr", element("th", section.name, scope="row"), *cells, class_="baseline")


def _row(report: EvalReport, timed: bool) -> Markup:
    comparison, kl = report.comparison, report.comparison.kl
    top1 = comparison.top1_agreement
    shares = "" if top1.low is None or top1.high is None else f"[{100 * top1.low:.1f}, {100 * top1.high:.1f}]"
    cells = [
        *_model_cells(report.quantized, report.size_ratio, change(comparison.perplexity_ratio)),
        _cell(number(kl.mean), f"± {number(kl.standard_error, 2)}" if kl.standard_error is not None else ""),
        _cell(percent(top1.value), shares),
    ]
    if timed:
        cells += _speed_cells(report.quantized.speed, report.speed_protocol)
    cells += [_memory_cell(report.quantized), _verdict_cell(report)]
    return element("tr", element("th", report.name, scope="row"), *cells)


def _memory_cell(section: ModelSection) -> Markup:
    if section.memory is None:
        return _cell("–")
    rise = section.memory.working_bytes
    return _cell(bytes_text(section.memory.parameter_bytes), "" if rise is None else f"+ {bytes_text(rise)} at work")


def _speed_cells(speed: Speed | None, protocol: SpeedProtocol | None) -> list[Markup]:
    if speed is None:
        return [_cell("–"), _cell("–")]
    ratios = (None, None) if protocol is None else (protocol.prefill_speedup, protocol.decode_speedup)
    return [
        _cell(speed_text(each), join(quartiles(each), _ratio(ratio)))
        for each, ratio in zip((speed.prefill, speed.decode), ratios, strict=True)
    ]


def _ratio(ratio: Spread | None) -> Markup | str:
    if ratio is None:
        return ""
    text, kind = speedup(ratio)
    shown, style = {"slower": ("▼ slower: ", "bad"), "faster": ("▲ ", "good"), "equal": ("", None)}[kind]
    return join(element("br"), element("span", shown + text, class_=style))


def _verdict_cell(report: EvalReport) -> Markup:
    comparison = report.comparison
    kinds = {"indistinguishable": "good", "same perplexity": "good", "better": "good"}
    badges = [element("span", comparison.verdict, class_=f"badge {kinds.get(comparison.verdict, 'plain')}")]
    if comparison.nonfinite:
        badges.append(element("span", f"{comparison.nonfinite} positions not finite", class_="badge bad"))
    for each in report.budget:
        text = f"{'✓' if each.passed else '✗'} {each.name} {number(each.measured)} ≤ {number(each.limit)}"
        text = text if each.passed else text.replace("≤", ">")
        badges.append(
            element(
                "span",
                text + ("" if each.certain else " (within error)"),
                class_=f"badge {'good' if each.passed else 'bad'}",
            )
        )
    return element("td", *badges)
