"""How far two models are apart: KL(baseline||quantized) of every token, and agreement on the most likely one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from llmquant.eval.charts import Point, kl_histogram_chart, tradeoff_chart
from llmquant.eval.lines import accuracy_text, plus_minus, short_note
from llmquant.eval.markup import Markup, element
from llmquant.eval.metrics import base
from llmquant.eval.metrics.base import NOTHING, Cell, Column, Panel
from llmquant.eval.metrics.memory import Section as Memory
from llmquant.eval.metrics.noise_floor import Section as NoiseFloor
from llmquant.eval.scoring import TokenScores
from llmquant.eval.statistics import Estimate, Floats, cluster_bootstrap, cluster_share, cluster_sums
from llmquant.words import number, percent

if TYPE_CHECKING:
    from llmquant.eval.pair import Pair
    from llmquant.eval.result import EvalReport

PLACE = 40
LIMITS = {"kl": ("KL", "kl.estimate")}
_BUCKETS = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)
_LOG10_KL = (-8.0, 2.0)


@dataclass(frozen=True)
class Kl:
    """KL(baseline||quantized) per token, in nats; the mean has an interval as in `Estimate`."""

    mean: float
    low: float | None
    high: float | None
    standard_error: float | None
    median: float
    p90: float
    p99: float
    p999: float
    max: float
    note: str | None = None

    @property
    def estimate(self) -> Estimate:
        """The mean with its interval."""
        return Estimate(self.mean, self.low, self.high, self.standard_error, self.note)


@dataclass(frozen=True)
class ProbabilityShift:
    """Change of the probability of the text's token, quantized less baseline."""

    mean: float
    rms: float


@dataclass(frozen=True)
class Flips:
    """Tokens whose greedy prediction changed between right and wrong."""

    right_to_wrong: int
    wrong_to_right: int


@dataclass(frozen=True)
class ConfidenceBucket:
    """Mean KL of the tokens where the baseline's highest probability lies in [low, high)."""

    low: float
    high: float
    tokens: int
    kl: float | None


@dataclass(frozen=True)
class Histogram:
    """Counts in equal bins of log10(value) from `low` to `high`."""

    low: float
    high: float
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Section(base.Section):
    """Quantized model against baseline on the same tokens."""

    tokens: int
    nonfinite: int
    kl: Kl
    top1_agreement: Estimate
    probability_shift: ProbabilityShift
    flips: Flips
    confidence_buckets: tuple[ConfidenceBucket, ...]
    kl_histogram: Histogram


def measure(pair: Pair, options: base.NoOptions) -> Section:
    """From the scores of all positions."""
    return summarize(pair.scored.tokens, pair.options.seed)


def summarize(scores: TokenScores, seed: int = 0) -> Section:
    """Summarise the finite positions, and count the others; `seed` is of the bootstrap."""
    kept = scores.kept()
    shift = np.exp(-kept.nll_quantized) - np.exp(-kept.nll_baseline)
    before, after = kept.top_baseline == kept.target, kept.top_quantized == kept.target
    return Section(
        tokens=len(kept.kl),
        nonfinite=len(scores.kl) - len(kept.kl),
        kl=_kl(kept, seed),
        top1_agreement=cluster_share(kept.top_baseline == kept.top_quantized, kept.window),
        probability_shift=ProbabilityShift(float(shift.mean()), math.sqrt(float(np.square(shift).mean()))),
        flips=Flips(right_to_wrong=int((before & ~after).sum()), wrong_to_right=int((~before & after).sum())),
        confidence_buckets=_confidence_buckets(kept),
        kl_histogram=kl_histogram(kept.kl),
    )


def _kl(scores: TokenScores, seed: int) -> Kl:
    mean = cluster_bootstrap(*cluster_sums(scores.kl, scores.window), seed=seed, least=0.0)
    median, p90, p99, p999, top = (float(x) for x in np.quantile(scores.kl, [0.5, 0.9, 0.99, 0.999, 1.0]))
    return Kl(mean.value, mean.low, mean.high, mean.standard_error, median, p90, p99, p999, top, mean.note)


def _confidence_buckets(scores: TokenScores) -> tuple[ConfidenceBucket, ...]:
    places = np.clip(np.searchsorted(_BUCKETS, scores.confidence, side="right") - 1, 0, len(_BUCKETS) - 2)
    buckets = []
    for place, (low, high) in enumerate(pairwise(_BUCKETS)):
        kl = scores.kl[places == place]
        buckets.append(ConfidenceBucket(low, high, len(kl), float(kl.mean()) if len(kl) else None))
    return tuple(buckets)


def kl_histogram(kl: Floats) -> Histogram:
    """Counts of per-token KL in 50 equal bins of log10, 1e-8 to 100; the outermost bins take what lies outside."""
    logs = np.log10(np.clip(kl, 10.0 ** _LOG10_KL[0], None))
    counts, _ = np.histogram(np.clip(logs, *_LOG10_KL), bins=np.linspace(*_LOG10_KL, 50 + 1))
    return Histogram(*_LOG10_KL, tuple(counts.tolist()))


def columns(section: Section, report: EvalReport) -> list[Column]:
    """KL and top-1 agreement."""
    kl, top1 = section.kl, section.top1_agreement
    shares = short_note(top1.note)
    if top1.low is not None and top1.high is not None:
        shares = f"[{100 * top1.low:.1f}, {100 * top1.high:.1f}]"
    return [
        Column("KL", _note(report), NOTHING, Cell(number(kl.mean), (plus_minus(kl.estimate),)), remark=kl.note),
        Column("top-1", _TOP1, NOTHING, Cell(percent(top1.value), more=(shares,))),
    ]


_TOP1 = "Share of positions where both models hold the same token most likely; score interval, clustered by window."


def _note(report: EvalReport) -> str:
    floor = report.get(NoiseFloor)
    known = f" Rounding in {report.loss_dtype} adds {number(floor.kl, 2)} to it (noise floor)." if floor else ""
    by_kernels = any(name.startswith("linear_int") and ": reference" not in name for name in report.kernels)
    accuracy = accuracy_text(report.accuracy) if by_kernels else ""  # the reference has none to choose
    return (
        "Mean KL(baseline‖quantized) per token in nats over the whole vocabulary, ± standard error "
        f"clustered by window. Both models computed in {report.loss_note}; the divergence is summed in float64. "
        f"Positions that are not finite are counted, not averaged.{known}{accuracy}"
    )


def words(section: Section, report: EvalReport) -> list[str]:
    """KL, top-1 agreement, and what is wrong."""
    kl = section.kl
    error = plus_minus(kl.estimate) if kl.standard_error is not None else f"({plus_minus(kl.estimate)})"
    found = [
        f"KL {number(kl.mean)} {error} in {report.loss_dtype}",
        f"top-1 agreement {percent(section.top1_agreement.value)}",
    ]
    return [*found, f"{section.nonfinite} positions not finite"] if section.nonfinite else found


def panels(reports: Sequence[EvalReport]) -> list[Panel]:
    """KL against size, where that is known, and the distribution of KL over tokens."""
    known = Section.of(reports)
    if not known:
        return []
    tiles = element("div", *(_distribution(*each) for each in known), class_="tiles")
    found = [Panel("Loss by token", tiles, _DISTRIBUTION_NOTE)]
    floors = [floor.kl for report in reports if (floor := report.get(NoiseFloor)) and floor.kl]
    chart = tradeoff_chart([point for report in reports if (point := _point(report))], floors[0] if floors else None)
    if chart is None:
        return found
    return [Panel("Loss against size", chart, "Lower left is better. Bars are 95 % intervals."), *found]


def _point(report: EvalReport) -> Point | None:
    section, size = report.get(Section), report.get(Memory)
    if section is None or size is None or size.quantized.bits_per_weight is None:
        return None
    return Point(report.name, size.quantized.bits_per_weight, section.kl.estimate)


_DISTRIBUTION_NOTE = (
    "Share of tokens by KL(baseline‖quantized), log axis. Most of the mean comes from tokens on which the baseline "
    "itself is undecided; the small table splits them by the baseline's highest probability (“sure”)."
)


def _distribution(name: str, section: Section) -> Markup:
    kl, histogram = section.kl, section.kl_histogram
    chart = kl_histogram_chart(histogram.counts, (histogram.low, histogram.high), kl.median, kl.p99, name)
    places = (("median", kl.median), ("90 %", kl.p90), ("99 %", kl.p99), ("99.9 %", kl.p999), ("max", kl.max))
    facts = " · ".join(f"{place} {number(value)}" for place, value in places)
    shift, flips = section.probability_shift, section.flips
    more = (
        f"Greedy token right → wrong {flips.right_to_wrong}, wrong → right {flips.wrong_to_right}; "
        f"change of the text's probability {100 * shift.mean:+.2f} points, rms {100 * shift.rms:.2f}."
    )
    return element(
        "figure",
        element("figcaption", name),
        chart,
        element("p", facts, class_="note"),
        _buckets(section),
        element("p", more, class_="note"),
    )


def _buckets(section: Section) -> Markup:
    buckets, tokens = section.confidence_buckets, section.tokens
    head = [element("th", f"{100 * bucket.low:.0f}–{100 * bucket.high:.0f}", scope="col") for bucket in buckets]
    share = [element("td", percent(bucket.tokens / tokens, 0), class_="num") for bucket in buckets]
    kl = [element("td", number(bucket.kl, 2), class_="num") for bucket in buckets]
    rows = (("sure, %", head), ("tokens", share), ("KL", kl))
    return element(
        "table", *(element("tr", element("th", name, scope="row"), *row) for name, row in rows), class_="buckets"
    )
